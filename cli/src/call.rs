//! `quiltctl call`.

use std::io::Read as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use quilt_client::control::{ASK_FOR_STREAM, InstanceRef, Share};
use quilt_client::{Answer, AskError, CallOptions, Client, Delivered, Outcome};
use quilt_core::words::list;
use quilt_manager::selector::is_selector;
use quilt_protocol::Address;
use serde::Serialize;
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};
use tokio::sync::Semaphore;

use crate::exit::{self, Failure, PARTLY, code_of};
use crate::output::{self, Format, plain};
use crate::{Session, complete, json, offers, reference};

/// Arguments of `call`.
#[derive(Args)]
pub(crate) struct Call {
    /// station/role/instance, station/role if there is one instance, manager, client:NAME, or a selector of instances such as
    /// "room=a and role=counter"
    #[arg(add = complete::instances(), value_parser = reference::target)]
    target: String,
    /// The command, or group:command; `quiltctl commands STATION` lists them
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
#[derive(Clone, Serialize)]
struct Result1 {
    station: Option<String>,
    role: Option<String>,
    instance: Option<String>,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reply: Option<Box<RawValue>>,
    /// The command's own error as a document, or a text about any other outcome.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Box<RawValue>>,
    /// The command's own error in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delivered: Option<&'static str>,
    elapsed_ms: f64,
    #[serde(skip)]
    code: u8,
}

impl Result1 {
    /// Whether the target does not offer the command: it has none of that name, or takes no commands now.
    fn is_not_offered(&self) -> bool {
        [Outcome::NoCommand.name(), Outcome::NoTarget.name()].contains(&self.outcome)
    }

    /// The target as it is written.
    fn place(&self) -> String {
        let place: Vec<_> = [&self.station, &self.role, &self.instance].into_iter().flatten().cloned().collect();
        place.join("/")
    }
}

/// How many calls are under way at once; the session takes 1,024.
const AT_ONCE: usize = 256;

impl Call {
    pub(crate) async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        let body = self.read_body()?;
        let until = Instant::now() + session.timeout;
        let client = session.connect().await?;
        let is_selector = is_selector(&self.target);
        let mut targets = match self.targets(&client).await {
            Ok(targets) => targets,
            Err(AskError::Ended { outcome, text }) if session.format.is_for_programs() => {
                let answer = Answer { outcome, encoding: quilt_protocol::Encoding::Json, body: text.into() };
                let result = result(None, answer, Duration::ZERO);
                print(session.format, std::slice::from_ref(&result), is_selector)?;
                return Ok(ExitCode::from(result.code));
            }
            Err(error) => return Err(error.into()),
        };
        if let [only] = &targets[..]
            && matches!(only, Address::Manager)
            && matches!(self.command.rsplit(':').next(), Some("events"))
        {
            return self.stream(&client, only, body, session.format).await;
        }
        let limit = self.limit.map_or(usize::MAX, |limit| limit.of(targets.len()));
        let mut results = Vec::new();
        let mut passed_over = Vec::new();
        // A selector means the instances that offer the command: those that do not, because their role has no such command
        // or because they do not run now, are passed over, and others take their place under the limit.
        while !targets.is_empty() && results.len() < limit {
            let later = targets.split_off(targets.len().min(limit - results.len()));
            let asked = std::mem::replace(&mut targets, later);
            if let [only] = &asked[..] {
                let (answer, elapsed) = ask(&client, only, &self.command, body.clone(), until).await;
                if answer.outcome == Outcome::Refused && answer.text().ends_with(ASK_FOR_STREAM) {
                    return self.stream(&client, only, body, session.format).await;
                }
                if answer.outcome == Outcome::NoCommand && !is_selector {
                    tell_offered(&client, only).await;
                }
                results.push(result(Some(only), answer, elapsed));
            } else {
                results.extend(self.call_all(&client, asked, &body, until).await);
            }
            if is_selector {
                passed_over.extend(results.extract_if(.., |result| result.is_not_offered()));
            }
        }
        self.tell_passed_over(&passed_over);
        if results.is_empty() {
            let text = format!("no instance that {:?} means offers {:?} now", self.target, self.command);
            return Err(Failure::with_code(exit::REFUSED, text));
        }
        print(session.format, &results, is_selector)?;
        Ok(ExitCode::from(overall(&results)))
    }

    /// Says which instances were not called because they do not run. Instances without such a command are not mentioned.
    fn tell_passed_over(&self, passed_over: &[Result1]) {
        const NAMED_MAX: usize = 5;
        let idle: Vec<_> = passed_over.iter().filter(|result| result.outcome == Outcome::NoTarget.name()).collect();
        if idle.is_empty() {
            return;
        }
        let mut names: Vec<_> = idle.iter().take(NAMED_MAX).map(|result| result.place()).collect();
        if idle.len() > NAMED_MAX {
            names.push(format!("{} more", idle.len() - NAMED_MAX));
        }
        eprintln!("quiltctl: passed over, because they take no commands now: {}", names.join(", "));
    }

    /// Calls all of them, side by side; the results are in the same order.
    async fn call_all(&self, client: &Client, asked: Vec<Address>, body: &Bytes, until: Instant) -> Vec<Result1> {
        let places = Arc::new(Semaphore::new(AT_ONCE));
        let mut calls = tokio::task::JoinSet::new();
        for (number, target) in asked.into_iter().enumerate() {
            let (client, command, body, places) = (client.clone(), self.command.clone(), body.clone(), places.clone());
            calls.spawn(async move {
                let _place = places.acquire_owned().await;
                let (answer, elapsed) = ask(&client, &target, &command, body, until).await;
                (number, result(Some(&target), answer, elapsed))
            });
        }
        let mut results = calls.join_all().await;
        results.sort_by_key(|(number, _)| *number);
        results.into_iter().map(|(_, result)| result).collect()
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
        json::read(text.as_bytes()).map_err(|error| {
            // The parser's own words are about its grammar; where it stopped is what helps.
            let at = error.rsplit(" at ").next().unwrap_or_default();
            let text = format!(
                "the request is not JSON from {at} on; expected something like '{{\"by\": 2, \"text\": \"x\"}}'"
            );
            Failure::with_code(exit::USAGE, text)
        })?;
        Ok(text.into())
    }

    async fn targets(&self, client: &Client) -> Result<Vec<Address>, AskError> {
        if let Ok(address @ (Address::Manager | Address::Client(_) | Address::Instance { .. })) = self.target.parse() {
            return Ok(vec![address]);
        }
        let found = reference::instances(client, &self.target).await?;
        let address = |InstanceRef { station, role, instance }| Address::Instance { station, role, instance };
        Ok(found.into_iter().map(address).collect())
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
        output::while_read(async {
            while let Some(item) = items.next().await {
                let item = json::read(&item).map_err(|error| Failure::new(format!("an item is not JSON: {error}")))?;
                output::line(item.get())?;
            }
            let answer = items.end().await;
            if answer.outcome == Outcome::Reply {
                return Ok(ExitCode::SUCCESS);
            }
            let result = result(Some(target), answer, began.elapsed());
            let code = result.code;
            print(format, &[result], false)?;
            Ok(ExitCode::from(code))
        })
        .await
    }
}

/// Says on standard error which commands an instance offers, and how one of them is called.
async fn tell_offered(client: &Client, target: &Address) {
    let Address::Instance { station, role, instance } = target else { return };
    let mut offers = client.commands(station).await.unwrap_or_default();
    offers.retain(|offer| offer.role == *role && offer.instance.as_ref() == Some(instance));
    let names: Vec<_> = offers.iter().map(|offer| plain(&offer.command)).collect();
    match offers.first() {
        None => eprintln!("quiltctl: {target} offers no commands now"),
        Some(first) => {
            let body = offers::example(&first.request_schema).map_or_else(String::new, |body| format!(" '{body}'"));
            eprintln!("quiltctl: {target} offers {}; for example", list(&names));
            eprintln!("  quiltctl call {target} {}{body}", plain(&first.command));
        }
    }
}

async fn ask(client: &Client, target: &Address, command: &str, body: Bytes, until: Instant) -> (Answer, Duration) {
    let began = Instant::now();
    let timeout = until.saturating_duration_since(began);
    let options = CallOptions { timeout, idempotent: false, retry: false };
    let mut answer = client.call_json(target, command, body, &options).await;
    if answer.outcome == Outcome::TimedOut && answer.body.is_empty() {
        answer.body = format!("no answer within {timeout:.1?}; it may have been carried out").into();
    }
    (answer, began.elapsed())
}

fn result(target: Option<&Address>, answer: Answer, elapsed: Duration) -> Result1 {
    let (station, role, instance) = match target {
        Some(Address::Instance { station, role, instance }) => {
            (Some(station.to_string()), Some(role.to_string()), Some(instance.to_string()))
        }
        Some(Address::Station(station)) => (Some(station.to_string()), None, None),
        Some(Address::Manager | Address::Client(_)) | None => (None, None, None),
    };
    let (mut reply, mut error, mut text, mut delivered) = (None, None, None, None);
    let (outcome, mut code) = (answer.outcome.name(), code_of(answer.outcome));
    match answer.outcome {
        Outcome::Reply => match json::read(&answer.body) {
            Ok(json) => reply = Some(json),
            // A damaged reply must not be shown as if it were what the role sent.
            Err(why) => {
                error = Some(string(&format!("it was carried out, but its reply is not JSON: {why}")));
                code = exit::GENERAL;
            }
        },
        Outcome::Error => {
            let (own, its_text) = quilt_client::split_error(&answer.body);
            error = Some(json::read(own).unwrap_or_else(|_| string(&answer.text())));
            text = its_text;
        }
        Outcome::PeerLost(how) => {
            delivered = Some(if how == Delivered::No { "no" } else { "unknown" });
            error = Some(string(&answer.text()));
        }
        _ => error = Some(string(&answer.text())),
    }
    let elapsed_ms = (elapsed.as_secs_f64() * 1e6).round() / 1e3;
    Result1 { station, role, instance, outcome, reply, error, text, delivered, elapsed_ms, code }
}

/// A JSON string.
fn string(text: &str) -> Box<RawValue> {
    to_raw_value(text).expect("a text is JSON")
}

fn print(format: Format, results: &[Result1], many: bool) -> Result<(), Failure> {
    match format {
        Format::Json => {
            let documents = serde_json::to_string(results).expect("results have text keys");
            return output::line(&json::indented(&documents));
        }
        Format::Yaml => {
            let documents: Vec<_> = results.iter().map(for_yaml).collect();
            return output::list(format, &documents, &[], |_| Vec::new());
        }
        Format::Jsonl => return output::list(format, results, &[], |_| Vec::new()),
        Format::Table | Format::Wide => {}
    }
    if let [result] = results
        && !many
    {
        // One target: the reply alone, so that it can be read by people and cut by programs.
        return match &result.reply {
            Some(reply) => output::line(&json::indented(reply.get())),
            None => {
                eprintln!("{}: {}", result.outcome, plain(&text_of(result)));
                Ok(())
            }
        };
    }
    output::list(format, results, &["TARGET", "OUTCOME", "ANSWER", "MS"], |result| {
        let answer = result.reply.as_ref().map_or_else(|| text_of(result), |reply| reply.get().to_owned());
        vec![result.place(), result.outcome.into(), plain(&answer), format!("{:.1}", result.elapsed_ms)]
    })
}

/// A result as a value, which YAML needs. A document that nests too deep for one is given as a text.
fn for_yaml(result: &Result1) -> Value {
    let value = |json: &RawValue| serde_json::from_str(json.get()).unwrap_or_else(|_| json.get().into());
    let (reply, error) = (result.reply.as_deref().map(value), result.error.as_deref().map(value));
    let mut document = serde_json::to_value(Result1 { reply: None, error: None, ..result.clone() });
    let fields = document.as_mut().ok().and_then(Value::as_object_mut).expect("a result is an object");
    fields
        .extend([("reply", reply), ("error", error)].into_iter().filter_map(|(key, value)| Some((key.into(), value?))));
    document.expect("just looked at")
}

/// What is said to people when there is no reply.
fn text_of(result: &Result1) -> String {
    let error = result.error.as_ref().map_or("", |error| error.get());
    let own = || serde_json::from_str(error).unwrap_or_else(|_| error.to_owned());
    result.text.clone().unwrap_or_else(own)
}

/// One code for all: theirs if they agree, "partly" if only some did.
fn overall(results: &[Result1]) -> u8 {
    let failed = results.iter().filter(|result| result.code != 0).count();
    match results.first() {
        Some(first) if failed == 0 || results.iter().all(|result| result.code == first.code) => first.code,
        _ if failed == results.len() => exit::REFUSED,
        _ => PARTLY,
    }
}
