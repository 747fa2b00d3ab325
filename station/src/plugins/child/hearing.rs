//! What a child asks of its station, and what it tells.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use quilt_net::{BoxFuture, Inbound, Service};
use quilt_plugin_api::{CommandRecord, LogLevel, Report, abi};
use quilt_protocol::message::{Hello, Refusal};
use quilt_protocol::session::Closed;
use quilt_protocol::version::SPOKEN;
use quilt_protocol::{FleetId, Outcome, Welcome};
use smol_str::SmolStr;
use tokio::sync::watch;

use super::calls::handler;
use super::{Child, HEARTBEAT, Placed};
use crate::plugins::trace;
use crate::plugins::wire::{self, Told, What};

/// Answers what the child asks and hears what it tells.
pub(super) struct Station {
    pub(super) child: Arc<Child>,
    pub(super) ready: watch::Sender<bool>,
}

impl Service for Station {
    fn hello(&self, hello: Hello) -> Result<(Welcome, SmolStr), Refusal> {
        tracing::trace!(software = hello.software, "a plugin's process greets");
        let welcome = Welcome {
            version: SPOKEN.highest,
            software: concat!("quilt-station ", env!("CARGO_PKG_VERSION")).into(),
            fleet: FleetId(uuid::Uuid::nil()),
            assigned: None,
            heartbeat_ms: HEARTBEAT.as_millis() as u32,
            features: Vec::new(),
            extensions: BTreeMap::new(),
        };
        Ok((welcome, SmolStr::new_static("plugin")))
    }

    fn request(&self, inbound: Inbound) -> BoxFuture<'static, ()> {
        let child = self.child.clone();
        match inbound.head.terms.command.as_str() {
            // In order: done before the connection's next frame is looked at.
            wire::READY => {
                self.ready.send_replace(true);
                inbound.answer(|(): ()| std::future::ready(Ok(())))
            }
            wire::TELL => inbound.answer(move |told: Vec<Told>| {
                told.into_iter().for_each(|told| hear(&child, told));
                std::future::ready(Ok(()))
            }),
            wire::CALL => inbound.answer(move |wire::Call { instance, target, command, body, time_ms }| {
                let placed = child.placed().get(&instance).cloned();
                async move {
                    let Some(placed) = placed else { return Err((Outcome::NoTarget, "it is gone".into())) };
                    let time = Duration::from_millis(time_ms);
                    let answer = placed.host.call(target, command, body.into(), time).await;
                    Ok(wire::Called { outcome: answer.outcome, body: answer.body.into() })
                }
            }),
            other => {
                inbound.responder.fail(Outcome::NoCommand, &format!("a station has no command {other:?} for plugins"));
                Box::pin(async {})
            }
        }
    }

    fn closed(&self, _: &Closed) {}
}

fn hear(child: &Arc<Child>, Told { instance, what }: Told) {
    if let What::Trace { level, target, instance, fields } = what {
        let taken = trace::event(level, &target, &child.name, instance.as_deref(), &fields);
        if taken {
            let host = child.placed().values().find(|placed| placed.is_called(instance.as_deref())).cloned();
            if let Some(placed) = host {
                placed.host.trace(&trace::line(level, &target, &fields));
                if level <= trace::TOLD {
                    placed.host.emit("trace", trace::told(level, &target, &child.name, &fields));
                }
            }
        }
        return;
    }
    let Some(Placed { host, to }) = child.placed().get(&instance).cloned() else { return };
    match what {
        What::Log(level, text) => host.log(
            match level {
                abi::LOG_ERROR => LogLevel::Error,
                abi::LOG_WARN => LogLevel::Warn,
                abi::LOG_INFO => LogLevel::Info,
                _ => LogLevel::Debug,
            },
            &text,
        ),
        What::Active => host.report(Report::Active),
        What::Waiting(on) => host.report(Report::Waiting(on)),
        What::Pid(pid) => host.report(Report::Pid(pid)),
        What::FoundAgain(since_ms) => host.report(Report::FoundAgain(since_ms)),
        What::Failed(why) => host.report(Report::Failed(why)),
        What::Ended(how) => host.report(Report::Ended(how)),
        What::Attribute(name, json) => host.attribute(&name, json),
        What::Emit(topic, json) => host.emit(&topic, json),
        What::Register(command, record) => match serde_json::from_str(&record) {
            Ok(record) => {
                // Here a call is only handed over.
                let record = CommandRecord { inline: true, ..record };
                host.register(record, handler(child.clone(), to, command));
            }
            Err(error) => host.log(LogLevel::Error, &format!("a command's record: {error}")),
        },
        What::DeRegister(group, name) => host.de_register(&group, &name),
        What::Trace { .. } => unreachable!("told above"),
    }
}
