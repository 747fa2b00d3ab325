//! tarpc over TCP with bincode.

use futures::StreamExt as _;
use tarpc::context;
use tarpc::server::{BaseChannel, Channel as _};
use tarpc::tokio_serde::formats::Bincode;
use tokio::io::AsyncReadExt as _;

use crate::{Payload, load, payload};

#[tarpc::service]
trait Echo {
    async fn echo(payload: Payload) -> Payload;
}

#[derive(Clone)]
struct Server;

impl Echo for Server {
    async fn echo(self, _: context::Context, payload: Payload) -> Payload {
        payload
    }
}

/// Serves until standard input ends; prints the address.
pub async fn serve() -> anyhow::Result<()> {
    let mut listener = tarpc::serde_transport::tcp::listen("127.0.0.1:0", Bincode::default).await?;
    println!("{}", listener.local_addr());
    listener.config_mut().max_frame_length(usize::MAX);
    let serving = listener.filter_map(|stream| std::future::ready(stream.ok())).for_each(|stream| {
        tokio::spawn(BaseChannel::with_defaults(stream).execute(Server.serve()).for_each(|work| async {
            tokio::spawn(work);
        }));
        std::future::ready(())
    });
    tokio::select! {
        () = serving => Ok(()),
        ended = async { tokio::io::stdin().read_to_end(&mut Vec::new()).await } => Ok(ended.map(drop)?),
    }
}

/// Calls as it is told to.
pub async fn call(address: &str) -> anyhow::Result<()> {
    let transport = tarpc::serde_transport::tcp::connect(address, Bincode::default).await?;
    let client = EchoClient::new(tarpc::client::Config::default(), transport).spawn();
    load::serve(|| async { Ok(client.echo(context::current(), payload()).await.map(drop)?) }).await
}
