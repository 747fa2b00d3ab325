//! Stations named in other words than their names.

use quilt_client::Client;
use quilt_client::control::StationView;
use quilt_protocol::Name;

use crate::exit::{Failure, REFUSED, USAGE};

/// Every station that a name, `id:<uuid>` or `mac:<address>` means: several if one identity is claimed by two machines.
///
/// # Errors
///
/// There is none, or they are different stations.
pub(crate) async fn views(client: &Client, reference: &str) -> Result<Vec<StationView>, Failure> {
    let selector = match reference.split_once(':') {
        Some((key @ ("id" | "mac"), value)) => format!("{key}={}", value.to_ascii_lowercase()),
        _ => {
            format!("name={}", reference.parse::<Name>().map_err(|error| Failure::with_code(USAGE, error.to_string()))?)
        }
    };
    let views = client.stations(&selector).await?;
    match &views[..] {
        [] => Err(refused(format!("there is no station {reference}; `quiltctl stations` lists them"))),
        [first, others @ ..] if others.iter().all(|other| other.id == first.id) => Ok(views),
        _ => {
            let ids: Vec<_> = views.iter().map(|view| format!("{} (id:{})", view.name, view.id)).collect();
            Err(refused(format!("{reference} means several stations: {}", ids.join(", "))))
        }
    }
}

/// The name of the station that a reference means. A name is taken as it is: whoever is asked next knows it or not.
///
/// # Errors
///
/// As [`views`].
pub(crate) async fn name(client: &Client, reference: &str) -> Result<Name, Failure> {
    if reference.contains(':') {
        return Ok(views(client, reference).await?.swap_remove(0).name);
    }
    reference.parse().map_err(|error| Failure::with_code(USAGE, format!("{error}")))
}

fn refused(text: String) -> Failure {
    Failure::with_code(REFUSED, text)
}
