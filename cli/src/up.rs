//! `quiltctl up`: a manager and one station in this process, over a real socket.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use quilt_client::Client;
use quilt_client::control::{Apply, StationView, Wait};
use quilt_core::daemon::DaemonArgs;
use quilt_core::signals::{self, Stop};
use quilt_core::{files, log};
use quilt_manager::{Manager, ManagerArgs};
use quilt_station::{Station, StationArgs};
use tokio::signal::unix::SignalKind;

use crate::exit::{Failure, REFUSED};
use crate::fleetfile::Source;
use crate::output::{self, plain};
use crate::{apply, events};

/// The name of the one station.
const LOCAL: &str = "local";
/// How long a fleet file gets to become healthy before it is shown as it is.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long it must stay healthy: a program that ends again and again is healthy for moments.
const SETTLE: Duration = Duration::from_secs(2);

/// Arguments of `up`.
#[derive(Args)]
pub(crate) struct Up {
    /// A fleet file to apply
    file: Option<PathBuf>,
    /// Folder for everything that must survive a restart
    #[arg(long, env = "QUILT_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where stations and tools connect; port 0 for any
    #[arg(long, env = "QUILT_LISTEN", value_name = "HOST:PORT")]
    listen: Option<String>,
    /// Where health, readiness and metrics are served
    #[arg(long, env = "QUILT_HTTP", value_name = "HOST:PORT")]
    http: Option<String>,
    /// A folder of plugins, watched; by default `plugins` in the configuration folder
    #[arg(long, env = "QUILT_PLUGIN_DIR", value_name = "DIR", value_delimiter = ',')]
    plugin_dir: Vec<PathBuf>,
    /// What to log: off, error, warn, info, debug, trace, or a filter
    #[arg(long, env = "QUILT_LOG_LEVEL", value_name = "LEVEL", default_value = "warn", value_parser = log::check_level)]
    log_level: String,
}

impl Up {
    pub(crate) async fn run(self) -> Result<ExitCode, Failure> {
        let began = Instant::now();
        let source = self.file.as_deref().map(Source::read).transpose()?;
        log::init(None, &self.log_level)?;
        // Looked at first: waiting for signals puts an end to ignoring them.
        let hangup_counts = !signals::is_hangup_ignored();
        let stop = signals::stop(|| {})?;
        let mut hangup = tokio::signal::unix::signal(SignalKind::hangup())?;
        // A terminal that closes, and a pipe that nobody reads, end what runs in the foreground. So nothing runs on unseen.
        let stop = async {
            tokio::select! {
                how = stop => how,
                _ = hangup.recv(), if hangup_counts => Stop::All,
                () = output::reader_left(), if hangup_counts => Stop::All,
            }
        };
        let mut stop = std::pin::pin!(stop);
        let data_dir = self.data_dir.clone().unwrap_or_else(files::default_data_dir);
        let manager = ManagerArgs {
            daemon: DaemonArgs::with_data_dir(&data_dir),
            listen: self.listen.clone(),
            http: self.http.clone(),
        };
        let manager = Manager::start(&manager.resolve()?).await?;
        let address = manager.protocol_addr().to_string();
        output::line(&format!("listening protocol {address}"))?;
        output::line(&format!("listening http {}", manager.http_addr()))?;
        let client = Client::connect(&address, "quiltctl-up").await?;
        let station = StationArgs {
            daemon: DaemonArgs::with_data_dir(data_dir),
            manager: vec![address.clone()],
            name: Some(LOCAL.into()),
            plugin_dir: self.plugin_dir.clone(),
            ..StationArgs::default()
        };
        let mut registered = client.events(None, true);
        let station = Station::start(station.resolve()?).await?;
        let followed = tokio::select! {
            followed = follow(&client, &mut registered, source.as_ref(), &address, began) => Some(followed),
            how = &mut stop => return down(station, manager, how).await,
        };
        let failed =
            followed.is_some_and(|followed| followed.inspect_err(|failure| eprintln!("quiltctl: {failure}")).is_err());
        if failed && source.is_some() {
            down(station, manager, Stop::All).await?;
            return Err(Failure::with_code(REFUSED, "the fleet file was not applied"));
        }
        drop(registered);
        let mut happening = client.events(None, true);
        let mut skip = true;
        let newest = client.events(None, false);
        let newest = last_number(newest).await;
        loop {
            tokio::select! {
                event = happening.next() => match event {
                    Some(event) => {
                        skip &= event.number <= newest;
                        if !skip {
                            output::line(&events::text(&event))?;
                        }
                    }
                    None => return down(station, manager, Stop::All).await,
                },
                how = &mut stop => return down(station, manager, how).await,
            }
        }
    }
}

async fn last_number(mut events: quilt_client::JsonItems<quilt_client::control::FleetEvent>) -> u64 {
    let mut last = 0;
    while let Some(event) = events.next().await {
        last = event.number;
    }
    last
}

/// Waits for the station, applies the file, shows what runs and what to try.
async fn follow(
    client: &Client,
    happening: &mut quilt_client::JsonItems<quilt_client::control::FleetEvent>,
    source: Option<&Source>,
    address: &str,
    began: Instant,
) -> Result<(), Failure> {
    loop {
        let registered = client.stations("state=connected").await?;
        if registered.iter().any(|station| station.name == LOCAL) {
            break;
        }
        if client.stations("state=unadopted").await?.iter().any(|station| station.name == LOCAL) {
            client.adopt(LOCAL, false).await?;
            break;
        }
        happening.next().await;
    }
    if let Some(source) = source {
        let request = Apply {
            source: source.place_of_file(),
            fleet: source.fleet.clone(),
            dry_run: false,
            force: false,
            wait: Some(Wait {
                within_ms: PATIENCE.as_millis() as u64,
                settle_ms: SETTLE.as_millis() as u64,
                rollback: false,
            }),
            batch: None,
        };
        let mut applying = client.apply(&request);
        let mut bars = apply::Bars::new();
        while let Some(progress) = applying.next().await {
            bars.show(&progress);
        }
        bars.finish();
        let reply = applying.reply().await?;
        apply::remarks(Some(source), &reply).iter().for_each(|remark| eprintln!("{remark}"));
        reply.failures.values().for_each(|failure| eprintln!("{LOCAL}: {}", plain(failure)));
        if let Some(mistake) = reply.mistakes.first() {
            let keys: Vec<_> = mistake.at.iter().map(String::as_str).collect();
            let place = source.place(&keys).map_or_else(String::new, |place| format!("{place}: "));
            return Err(Failure::with_code(REFUSED, format!("{place}{}", mistake.text)));
        }
        if let Some(rejection) = &reply.rejection {
            for problem in &rejection.problems {
                let place = source.place_of(problem).map_or_else(String::new, |place| format!(" ({place})"));
                eprintln!("{}{place}", plain(&problem.to_string()));
            }
            return Err(Failure::with_code(REFUSED, rejection.message.clone()));
        }
    }
    let stations = client.stations(&format!("name={LOCAL}")).await?;
    if let Some(station) = stations.first() {
        show(station, address, began)?;
    }
    Ok(())
}

fn show(station: &StationView, address: &str, began: Instant) -> Result<(), Failure> {
    for instance in &station.instances {
        let pid = instance.pid.map_or_else(String::new, |pid| format!("  pid {pid}"));
        let line =
            format!("{LOCAL}/{}/{}  {}{pid} {}", instance.role, instance.instance, instance.state, instance.detail);
        output::line(plain(&line).trim_end())?;
    }
    output::line(&format!("up after {} ms", began.elapsed().as_millis()))?;
    let at = if address == "127.0.0.1:7440" { String::new() } else { format!(" --manager {address}") };
    output::line("\nTry next, in another terminal:")?;
    output::line(&format!("  quiltctl{at} stations"))?;
    output::line(&format!("  quiltctl{at} commands {LOCAL}"))?;
    for instance in &station.instances {
        match instance.role.as_str() {
            "counter" => {
                let target = format!("{LOCAL}/counter/{}", instance.instance);
                output::line(&format!("  quiltctl{at} call {target} increment '{{\"by\":2}}'"))?;
            }
            role => output::line(&format!("  quiltctl{at} logs {LOCAL}/{role}/{} -f", instance.instance))?,
        }
    }
    output::line("Ctrl-C stops everything.\n")
}

/// Stops the station with its roles (or leaving those that outlive it), then the manager.
async fn down(station: Station, manager: Manager, how: Stop) -> Result<ExitCode, Failure> {
    eprintln!("stopping");
    let late = station.stop(how).await;
    manager.stop().await;
    if late.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    Err(Failure::new(format!("did not stop in time: {}", late.join(", "))))
}
