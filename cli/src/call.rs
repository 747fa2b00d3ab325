//! `quiltctl call`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::process::ExitCode;
use std::time::Instant;

use bytes::Bytes;
use clap::Args;
use quilt_client::control::{InstanceRef, Share};
use quilt_client::{Answer, CallOptions, Client, Delivered, Outcome};
use quilt_protocol::Address;
use serde::Serialize;
use serde_json::Value;

use crate::exit::{Failure, PARTLY, code_of};
use crate::output::{self, Format, plain};
use crate::{Session, complete};

/// Arguments of `call`.
#[derive(Args)]
pub(crate) struct Call {
    /// station/role/instance, station/role, manager, client:NAME, or a selector such as "room=a and role=counter"
    #[arg(add = complete::instances())]
    target: String,
    /// The command, or group:command
    #[arg(add = complete::commands())]
    command: String,
    /// The request as JSON, @FILE, or - for standard input
    #[arg(value_name = "JSON|@FILE|-", default_value = "{}")]
    body: String,
    /// At most so many of the instances that a selector means, as a number or percentage
    #[arg(long, value_name = "N|N%")]
    limit: Option<Share>,
}

/// How one target's call ended; the JSON form is a contract.
#[derive(Serialize)]
struct Result1 {
    station: Option<String>,
    role: Option<String>,
    instance: Option<String>,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reply: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delivered: Option<&'static str>,
    elapsed_ms: f64,
    #[serde(skip)]
    code: u8,
}

impl Call {
    pub(crate) async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        let body = self.read_body()?;
        let began = Instant::now();
        let client = session.connect().await?;
        let targets = self.targets(&client).await?;
        let is_selector = self.target.contains('=');
        if let [only] = &targets[..]
            && !is_selector
            && streams(&client, only, &self.command).await
        {
            return self.stream(&client, only, body, session.format).await;
        }
        // What it took to find the targets is part of the time that the operator gave.
        let timeout = session.timeout.saturating_sub(began.elapsed());
        let options = CallOptions { timeout, idempotent: false, retry: false };
        let mut calls = tokio::task::JoinSet::new();
        for (place, target) in targets.into_iter().enumerate() {
            let (client, command, body, options) =
                (client.clone(), self.command.clone(), body.clone(), options.clone());
            calls.spawn(async move {
                let began = Instant::now();
                let answer = client.call_json(&target, &command, body, &options).await;
                (place, result(&target, answer, began))
            });
        }
        let mut results: Vec<_> = calls.join_all().await;
        results.sort_by_key(|(place, _)| *place);
        let results: Vec<_> = results.into_iter().map(|(_, result)| result).collect();
        print(session.format, &results, is_selector)?;
        Ok(ExitCode::from(overall(&results)))
    }

    fn read_body(&self) -> Result<Bytes, Failure> {
        let text = match self.body.as_str() {
            "-" => {
                let mut text = String::new();
                std::io::stdin().read_to_string(&mut text)?;
                text
            }
            file if file.starts_with('@') => {
                let path = &file[1..];
                std::fs::read_to_string(path).map_err(|error| Failure::new(format!("{path}: {error}")))?
            }
            json => json.to_owned(),
        };
        serde_json::from_str::<Value>(&text)
            .map_err(|error| Failure::with_code(2, format!("the request is not JSON: {error}")))?;
        Ok(text.into())
    }

    async fn targets(&self, client: &Client) -> Result<Vec<Address>, Failure> {
        if let Ok(address @ (Address::Manager | Address::Client(_) | Address::Instance { .. })) = self.target.parse() {
            return Ok(vec![address]);
        }
        let refused = |text: String| Err(Failure::with_code(crate::exit::REFUSED, text));
        let mut found = client.resolve(&self.target, None).await?;
        if found.is_empty() {
            return refused(format!("{:?} means no instance of a connected station", self.target));
        }
        if self.target.contains('=') {
            found = self.offering(client, found).await;
            if found.is_empty() {
                return refused(format!("no instance that {:?} means offers {:?}", self.target, self.command));
            }
        }
        if let Some(limit) = self.limit {
            found.truncate(limit.of(found.len()));
        }
        let address = |InstanceRef { station, role, instance }| Address::Instance { station, role, instance };
        Ok(found.into_iter().map(address).collect())
    }

    /// Those of the instances that offer the command, in order: a selector means no others. A station that does not say
    /// keeps its instances, so that its silence shows among the outcomes.
    async fn offering(&self, client: &Client, found: Vec<InstanceRef>) -> Vec<InstanceRef> {
        let stations: BTreeSet<_> = found.iter().map(|one| one.station.clone()).collect();
        let mut asked = tokio::task::JoinSet::new();
        for station in stations {
            let client = client.clone();
            asked.spawn(async move {
                let commands = client.commands(&station).await;
                (station, commands)
            });
        }
        let commands: BTreeMap<_, _> = asked.join_all().await.into_iter().collect();
        let offers = |one: &InstanceRef| match &commands[&one.station] {
            Err(_) => true,
            Ok(commands) => commands.iter().any(|offered| {
                let (group, name) = self.command.rsplit_once(':').unwrap_or(("", &self.command));
                offered.role == one.role
                    && offered.instance == one.instance
                    && offered.command == name
                    && (group.is_empty() || offered.group == group)
            }),
        };
        found.into_iter().filter(offers).collect()
    }

    /// Prints one JSON line an item.
    async fn stream(
        &self,
        client: &Client,
        target: &Address,
        body: Bytes,
        format: Format,
    ) -> Result<ExitCode, Failure> {
        let began = Instant::now();
        let mut items = client.stream_json(target, &self.command, body);
        while let Some(item) = items.next().await {
            output::line(&String::from_utf8_lossy(&item))?;
        }
        let answer = items.end().await;
        if answer.outcome == Outcome::Reply {
            return Ok(ExitCode::SUCCESS);
        }
        let result = result(target, answer, began);
        let code = result.code;
        print(format, &[result], false)?;
        Ok(ExitCode::from(code))
    }
}

/// Whether the command of this instance answers with a stream, as far as its station says.
async fn streams(client: &Client, target: &Address, command: &str) -> bool {
    match target {
        Address::Manager => matches!(command.rsplit(':').next(), Some("events")),
        Address::Instance { station, role, instance } => {
            let commands = client.commands(station).await.unwrap_or_default();
            let name = command.rsplit(':').next().unwrap_or(command);
            commands
                .iter()
                .any(|one| one.role == *role && one.instance == *instance && one.command == name && one.streaming)
        }
        _ => false,
    }
}

fn result(target: &Address, answer: Answer, began: Instant) -> Result1 {
    let (station, role, instance) = match target {
        Address::Instance { station, role, instance } => {
            (Some(station.to_string()), Some(role.to_string()), Some(instance.to_string()))
        }
        Address::Station(station) => (Some(station.to_string()), None, None),
        Address::Manager | Address::Client(_) => (None, None, None),
    };
    let (mut reply, mut error, mut delivered) = (None, None, None);
    match answer.outcome {
        Outcome::Reply => reply = Some(serde_json::from_slice(&answer.body).unwrap_or(Value::Null)),
        Outcome::Error => {
            let own = serde_json::from_slice(&answer.body);
            error = Some(own.unwrap_or_else(|_| answer.text().into()));
        }
        Outcome::PeerLost(how) => {
            delivered = Some(if how == Delivered::No { "no" } else { "unknown" });
            error = Some(answer.text().into());
        }
        _ => error = Some(answer.text().into()),
    }
    let elapsed_ms = (began.elapsed().as_secs_f64() * 1e6).round() / 1e3;
    let (outcome, code) = (answer.outcome.name(), code_of(answer.outcome));
    Result1 { station, role, instance, outcome, reply, error, delivered, elapsed_ms, code }
}

fn print(format: Format, results: &[Result1], many: bool) -> Result<(), Failure> {
    if !matches!(format, Format::Table | Format::Wide) {
        return output::list(format, results, &[], |_| Vec::new());
    }
    if let [result] = results
        && !many
    {
        // One target: the reply alone, so that it can be read by people and cut by programs.
        return match (&result.reply, &result.error) {
            (Some(reply), _) => output::line(&serde_json::to_string_pretty(reply).expect("it was JSON")),
            (_, error) => {
                let text = error.as_ref().map(text_of).unwrap_or_default();
                eprintln!("{}: {}", result.outcome, plain(&text));
                Ok(())
            }
        };
    }
    output::list(format, results, &["TARGET", "OUTCOME", "ANSWER", "MS"], |result| {
        let place: Vec<_> = [&result.station, &result.role, &result.instance].into_iter().flatten().cloned().collect();
        let answer = result.reply.as_ref().map(ToString::to_string);
        let answer = answer.or_else(|| result.error.as_ref().map(text_of)).unwrap_or_default();
        vec![place.join("/"), result.outcome.into(), plain(&answer), format!("{:.1}", result.elapsed_ms)]
    })
}

fn text_of(error: &Value) -> String {
    error.as_str().map_or_else(|| error.to_string(), str::to_owned)
}

/// One code for all: theirs if they agree, "partly" if only some did.
fn overall(results: &[Result1]) -> u8 {
    let failed = results.iter().filter(|result| result.code != 0).count();
    match results.first() {
        Some(first) if failed == 0 || results.iter().all(|result| result.code == first.code) => first.code,
        _ if failed == results.len() => crate::exit::REFUSED,
        _ => PARTLY,
    }
}
