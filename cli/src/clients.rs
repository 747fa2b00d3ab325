//! `quiltctl clients`.

use std::process::ExitCode;

use crate::Session;
use crate::exit::Failure;
use crate::output::{self, plain};

pub(crate) async fn run(session: &Session) -> Result<ExitCode, Failure> {
    let clients = session.connect().await?.clients().await?;
    output::list(session.format, &clients, &["NAME", "SOFTWARE", "FROM", "SINCE"], |client| {
        vec![client.name.to_string(), plain(&client.software), client.peer.clone(), output::age(&client.since)]
    })?;
    Ok(ExitCode::SUCCESS)
}
