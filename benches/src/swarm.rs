//! Many light stations in one process.

mod light;
mod million;
mod slow;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use quilt_net::{Backoff, Handle, dial};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::sync::{Semaphore, watch};

pub(crate) use self::light::Light;
pub(crate) use self::million::{rows as million, run as be_a_million};
pub(crate) use self::slow::Slow;

/// The first delay between attempts to connect, and about the longest; as stations have it.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// How long a connection attempt may take.
const DIAL: Duration = Duration::from_secs(5);
/// How many connect at a time when the swarm begins.
const AT_ONCE: usize = 512;

/// Arguments of `swarm`.
#[derive(Args)]
pub(crate) struct Swarm {
    /// Where the manager listens
    manager: String,
    /// How many stations
    count: usize,
    /// The number of the first
    #[arg(long, default_value_t = 0)]
    first: usize,
    /// Put what is accepted there, synced, as stations do
    #[arg(long)]
    durable: Option<PathBuf>,
    /// How many of them read a few bytes at a time
    #[arg(long, default_value_t = 0)]
    slow: usize,
}

impl Swarm {
    /// Be the swarm. Prints `registered` whenever all are, and `answered` whenever all have answered a push; takes
    /// `churn N` on its standard input: so many a second of those from number 1000 on go and come again.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let (registered, mut all) = watch::channel(0);
        let (answered, mut answers) = watch::channel(0);
        let at_once = Arc::new(Semaphore::new(AT_ONCE));
        let (mut sessions, mut tasks) = (Vec::new(), tokio::task::JoinSet::new());
        for number in 0..self.count {
            let light = Light::new(self.first + number, self.durable.clone(), answered.clone());
            let (session, live) = watch::channel(None);
            sessions.push(live);
            let (manager, slow) = (self.manager.clone(), number < self.slow);
            tasks.spawn(stay(light, manager, slow, at_once.clone(), registered.clone(), session));
        }
        let count = self.count;
        let telling = async {
            loop {
                all.wait_for(|all| *all >= count).await?;
                println!("registered");
                all.wait_for(|all| *all < count).await?;
            }
        };
        let answering = async {
            let mut rounds = 0;
            loop {
                answers.wait_for(|answers| *answers >= (rounds + 1) * count).await?;
                rounds += 1;
                println!("answered");
            }
        };
        tokio::select! {
            told = telling => told,
            told = answering => told,
            told = listen(sessions) => told,
        }
    }
}

/// Keeps one station connected.
async fn stay(
    light: Arc<Light>,
    manager: String,
    slow: bool,
    at_once: Arc<Semaphore>,
    registered: watch::Sender<usize>,
    session: watch::Sender<Option<Handle>>,
) {
    let mut backoff = Backoff::new(RECONNECT.0, RECONNECT.1);
    loop {
        let connected = async {
            let _permit = at_once.acquire().await?;
            let stream = dial(&manager, DIAL).await?;
            if slow { light.register(Slow::new(stream)).await } else { light.register(stream).await }
        };
        match connected.await {
            Ok(handle) => {
                backoff.reset();
                session.send_replace(Some(handle.clone()));
                registered.send_modify(|registered| *registered += 1);
                handle.closed().await;
                registered.send_modify(|registered| *registered -= 1);
            }
            Err(error) => tracing::debug!(%error, "not connected"),
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

/// Does what it is told until there is nobody to tell it.
async fn listen(sessions: Vec<watch::Receiver<Option<Handle>>>) -> anyhow::Result<()> {
    /// Those before it never go: somebody measures calls of them.
    const STAY: usize = 1000;
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let (mut churn, mut next) = (0, STAY);
    let mut seconds = tokio::time::interval(Duration::from_millis(100));
    loop {
        tokio::select! {
            line = lines.next_line() => match line? {
                None => return Ok(()),
                Some(line) => churn = line.trim_start_matches("churn ").parse::<usize>()?,
            },
            _ = seconds.tick() => {
                for _ in 0..churn / 10 {
                    next = if next + 1 < sessions.len() { next + 1 } else { STAY };
                    if let Some(Some(session)) = sessions.get(next).map(|session| session.borrow().clone()) {
                        session.goodbye("churn");
                    }
                }
            }
        }
    }
}
