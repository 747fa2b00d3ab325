//! The peers: tarpc and NATS request-reply, doing the same work as quilt's own rows. Started by `quilt-bench`, which reads one
//! line of figures for each line it writes.

mod load;
mod nats;
mod rpc;

use serde::{Deserialize, Serialize};

/// What goes there and back: a name of 16 characters and 64 bytes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Payload {
    name: String,
    value: serde_bytes::ByteBuf,
}

fn payload() -> Payload {
    Payload { name: "0123456789abcdef".into(), value: serde_bytes::ByteBuf::from(vec![7; 64]) }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["tarpc-serve"] => rpc::serve().await,
        ["tarpc-call", address] => rpc::call(address).await,
        ["nats-serve", url] => nats::serve(url).await,
        ["nats-call", url] => nats::call(url).await,
        _ => anyhow::bail!("tarpc-serve | tarpc-call ADDRESS | nats-serve URL | nats-call URL"),
    }
}
