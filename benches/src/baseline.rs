//! The baseline: tokio TCP and tokio-util's length-delimited frames, nothing else. The server sends back what comes,
//! fed while input is ready and flushed once.

use std::time::Instant;

use bytes::Bytes;
use futures_util::future::try_join_all;
use futures_util::{SinkExt, StreamExt as _, TryStreamExt as _};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::codec::{Framed, LengthDelimitedCodec};

use crate::part;

/// As many bytes as the payload that quilt and the peers encode.
const BODY: usize = 84;

type Frames = Framed<TcpStream, LengthDelimitedCodec>;

/// Be the server; prints where it listens.
pub(crate) async fn serve() -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    let accepting = async {
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(echo(Framed::new(stream, LengthDelimitedCodec::new())));
        }
    };
    tokio::select! {
        failed = accepting => failed,
        told = part::until_told() => told,
    }
}

async fn echo(mut frames: Frames) -> std::io::Result<()> {
    while let Some(frame) = frames.next().await {
        frames.feed(frame?.freeze()).await?;
        // Feed while more is ready; flush when the input is drained.
        while let Some(Some(frame)) = next_ready(&mut frames).await {
            frames.feed(frame?.freeze()).await?;
        }
        SinkExt::<Bytes>::flush(&mut frames).await?;
    }
    Ok(())
}

async fn next_ready(frames: &mut Frames) -> Option<Option<std::io::Result<bytes::BytesMut>>> {
    std::future::poll_fn(|cx| match frames.poll_next_unpin(cx) {
        std::task::Poll::Ready(frame) => std::task::Poll::Ready(Some(frame)),
        std::task::Poll::Pending => std::task::Poll::Ready(None),
    })
    .await
}

async fn connect(address: &str) -> anyhow::Result<Frames> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(Framed::new(stream, LengthDelimitedCodec::new()))
}

/// The median time of a call in microseconds if they are made one after the other, and calls a second with so many in flight,
/// spread over some connections.
pub(crate) async fn calls(
    address: &str,
    connections: usize,
    window: usize,
    count: usize,
) -> anyhow::Result<(f64, f64)> {
    let body = Bytes::from(vec![7; BODY]);
    if window == 1 {
        let mut frames = connect(address).await?;
        let mut times = Vec::with_capacity(count);
        for _ in 0..count {
            let began = Instant::now();
            frames.send(body.clone()).await?;
            frames.next().await.transpose()?;
            times.push(began.elapsed());
        }
        times.sort();
        return Ok((times[count / 2].as_secs_f64() * 1e6, 0.0));
    }
    let began = Instant::now();
    let all = (0..connections).map(|_| in_flight(address, &body, window / connections, count / connections));
    let made: usize = try_join_all(all).await?.into_iter().sum();
    Ok((0.0, made as f64 / began.elapsed().as_secs_f64()))
}

/// Makes calls with so many in flight on one connection. Answers how many.
async fn in_flight(address: &str, body: &Bytes, window: usize, count: usize) -> anyhow::Result<usize> {
    let mut frames = connect(address).await?;
    for _ in 0..window {
        frames.feed(body.clone()).await?;
    }
    SinkExt::<Bytes>::flush(&mut frames).await?;
    let (mut sent, mut received) = (window, 0);
    while received < count {
        frames.next().await.transpose()?;
        received += 1;
        let mut fed = 0;
        while let Some(Some(_)) = next_ready(&mut frames).await {
            received += 1;
            fed += 1;
        }
        for _ in 0..=fed {
            if sent < count + window {
                frames.feed(body.clone()).await?;
                sent += 1;
            }
        }
        SinkExt::<Bytes>::flush(&mut frames).await?;
    }
    Ok(received)
}

/// Be a server that sends a body of 1 KiB on each of so many connections and takes an answer from each, once for every line
/// it is told; prints where it listens, and when it is done.
pub(crate) async fn pusher(count: usize) -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    let mut all = Vec::with_capacity(count);
    while all.len() < count {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        all.push(Framed::new(stream, LengthDelimitedCodec::new()));
    }
    println!("connected");
    let (body, mut told) = (Bytes::from(vec![7; 1024]), BufReader::new(tokio::io::stdin()).lines());
    while told.next_line().await?.is_some() {
        for frames in &mut all {
            frames.send(body.clone()).await?;
        }
        for frames in &mut all {
            frames.next().await.transpose()?;
        }
        println!("done");
    }
    Ok(())
}

/// Be so many connections that answer whatever comes with a name.
pub(crate) async fn pushed(pusher: &str, count: usize) -> anyhow::Result<()> {
    for _ in 0..count {
        let mut frames = connect(pusher).await?;
        tokio::spawn(async move {
            while let Some(Ok(_)) = frames.next().await {
                if frames.send(Bytes::from_static(b"sixteen bytes...")).await.is_err() {
                    return;
                }
            }
        });
    }
    part::until_told().await
}

/// Be so many connections that have said one thing each, as long as a registration; prints when they are there.
pub(crate) async fn idle(address: &str, count: usize) -> anyhow::Result<()> {
    /// As many bytes as a greeting and a registration with full facts.
    const REGISTRATION: usize = 420;
    /// As many at a time as light stations.
    const AT_ONCE: usize = 512;
    let body = Bytes::from(vec![7; REGISTRATION]);
    let connected = (0..count).map(|_| async {
        let mut frames = connect(address).await?;
        frames.send(body.clone()).await?;
        frames.next().await.transpose()?;
        anyhow::Ok(frames)
    });
    let _all: Vec<_> = futures_util::stream::iter(connected).buffer_unordered(AT_ONCE).try_collect().await?;
    println!("connected");
    part::until_told().await
}
