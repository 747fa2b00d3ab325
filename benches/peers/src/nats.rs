//! Request and reply through a NATS server, with bincode payloads.

use async_nats::Client;
use bincode::config::standard;
use futures::StreamExt as _;
use tokio::io::AsyncReadExt as _;

use crate::{Payload, load, payload};

const SUBJECT: &str = "bench.echo";

fn encode(payload: &Payload) -> anyhow::Result<Vec<u8>> {
    Ok(bincode::serde::encode_to_vec(payload, standard())?)
}

fn decode(bytes: &[u8]) -> anyhow::Result<Payload> {
    Ok(bincode::serde::decode_from_slice(bytes, standard())?.0)
}

/// Answers until standard input ends.
pub async fn serve(url: &str) -> anyhow::Result<()> {
    let client = async_nats::connect(url).await?;
    let mut requests = client.subscribe(SUBJECT).await?;
    client.flush().await?;
    println!("ready");
    let serving = async {
        while let Some(request) = requests.next().await {
            if let Some(reply) = request.reply {
                client.publish(reply, encode(&decode(&request.payload)?)?.into()).await?;
            }
        }
        anyhow::Ok(())
    };
    tokio::select! {
        served = serving => served,
        ended = async { tokio::io::stdin().read_to_end(&mut Vec::new()).await } => Ok(ended.map(drop)?),
    }
}

/// Calls as it is told to.
pub async fn call(url: &str) -> anyhow::Result<()> {
    let client: Client = async_nats::connect(url).await?;
    load::serve(|| async {
        let reply = client.request(SUBJECT, encode(&payload())?.into()).await?;
        decode(&reply.payload).map(drop)
    })
    .await
}
