//! The two ways in which calls are made, as quilt's own rows make them.

use std::cell::{Cell, RefCell};
use std::io::Write as _;
use std::time::Instant;

use futures::future::try_join_all;
use tokio::io::{AsyncBufReadExt as _, BufReader};

/// For every line `WINDOW COUNT` on standard input makes so many calls with so many in flight, and prints the median time of one
/// in microseconds and the calls a second.
pub async fn serve<F: Future<Output = anyhow::Result<()>>>(call: impl Fn() -> F) -> anyhow::Result<()> {
    println!("ready");
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let mut words = line.split_whitespace().map(str::parse::<usize>);
        let (Some(window), Some(count)) = (words.next(), words.next()) else {
            anyhow::bail!("WINDOW COUNT, got {line:?}")
        };
        let (median, rate) = run(&call, window?, count?).await?;
        println!("{median} {rate}");
        std::io::stdout().flush()?;
    }
    Ok(())
}

async fn run<F: Future<Output = anyhow::Result<()>>>(
    call: impl Fn() -> F,
    window: usize,
    count: usize,
) -> anyhow::Result<(f64, f64)> {
    let (began, left, times) = (Instant::now(), Cell::new(count), RefCell::new(Vec::with_capacity(count)));
    let caller = || async {
        while let Some(fewer) = left.get().checked_sub(1) {
            left.set(fewer);
            let began = Instant::now();
            call().await?;
            times.borrow_mut().push(began.elapsed());
        }
        anyhow::Ok(())
    };
    try_join_all((0..window).map(|_| caller())).await?;
    let (rate, mut times) = (count as f64 / began.elapsed().as_secs_f64(), times.into_inner());
    times.sort();
    Ok((times[count / 2].as_secs_f64() * 1e6, rate))
}
