//! Light stations: they register with facts, beat, and accept every push at once, and run nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context as _;
use quilt_net::{BoxFuture, Inbound, NoService, Service, connect, dial};
use quilt_protocol::control::{
    Facts, Plan, Registered, Registration, RoleOffer, UpdateConfiguration, Verdict, command,
};
use quilt_protocol::message::{Identity, Refusal};
use quilt_protocol::session::Closed;
use quilt_protocol::version::SPOKEN;
use quilt_protocol::{Address, Encoding, Hello, Outcome, StationId, Welcome};

use crate::part;

/// Accepts everything.
struct Willing;

impl Service for Willing {
    fn hello(&self, hello: Hello) -> Result<Welcome, Refusal> {
        NoService.hello(hello)
    }

    fn request(&self, inbound: Inbound) -> BoxFuture<'static, ()> {
        match inbound.head.command.as_str() {
            command::UPDATE_CONFIGURATION => inbound.answer(|_: UpdateConfiguration| async { Ok(Verdict::Accepted) }),
            command::PLAN => inbound.answer(|_: Plan| async { Ok(Verdict::Accepted) }),
            other => {
                let text = format!("a light station has no {other}");
                inbound.responder.fail(Outcome::NoCommand, &text);
                Box::pin(async {})
            }
        }
    }

    fn closed(&self, _: &Closed) {}
}

/// Be so many light stations; prints when all have registered.
pub(crate) async fn run(manager: &str, count: usize) -> anyhow::Result<()> {
    let mut handles = Vec::new();
    for number in 0..count {
        let id = StationId::random();
        let stream = dial(manager, std::time::Duration::from_secs(5)).await?;
        let hello = Hello {
            versions: SPOKEN,
            software: "quilt-bench".into(),
            fleet: None,
            identity: Identity::Station(id),
            features: Vec::new(),
            extensions: BTreeMap::new(),
        };
        let (handle, _) = connect(stream, hello, Arc::new(Willing)).await?;
        let registration = registration(id, number)?;
        let time = std::time::Duration::from_secs(15);
        handle
            .ask::<_, Registered>(Address::Manager, command::REGISTER, Encoding::Bincode, &registration, time)
            .await
            .context("registration")?;
        handles.push(handle);
    }
    println!("registered");
    part::until_told().await
}

fn registration(id: StationId, number: usize) -> anyhow::Result<Registration> {
    let more = [("os", "Debian GNU/Linux 12 (bookworm)"), ("arch", "x86_64"), ("cores", "2"), ("kernel", "6.1.0-18")];
    Ok(Registration {
        id,
        wished_name: format!("swarm-{number}").parse()?,
        facts: Facts {
            hostname: format!("swarm-{number}"),
            mac: Some(format!("02:00:00:{:02x}:{:02x}:{:02x}", number >> 16 & 255, number >> 8 & 255, number & 255)),
            ip: Some("127.0.0.1".into()),
            machine_id: Some("0123456789abcdef0123456789abcdef".into()),
            boot_id: Some(id.to_string()),
            software: "quilt-bench".into(),
            more: more.into_iter().collect(),
        },
        labels: [("swarm", "yes")].into_iter().collect(),
        roles: vec![RoleOffer { role: "counter".parse()?, version: "0.1.0".into(), instances: 0 }],
        blocked: Vec::new(),
        applied: None,
        applying: false,
        instances: Vec::new(),
    })
}
