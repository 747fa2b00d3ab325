//! Stations named in other words than their names, and targets.

use quilt_client::Client;
use quilt_client::control::StationView;
use quilt_manager::selector::Selector;
use quilt_protocol::{Address, Name};

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

/// Checks a selector, so that a mistake in it is one of usage. Empty for all stations.
pub(crate) fn selector(text: &str) -> Result<String, String> {
    if !text.is_empty() {
        text.parse::<Selector>()?;
    }
    Ok(text.to_owned())
}

/// Checks the shape of what has logs: instances, or all of a station. Whether there are such is for the manager to say.
pub(crate) fn log_target(text: &str) -> Result<String, String> {
    if is_selector(text) {
        return selector(text);
    }
    let is_station = text.starts_with("id:") || text.starts_with("mac:") || text.parse::<Name>().is_ok();
    if is_station || matches!(text.split('/').count(), 2 | 3) {
        return Ok(text.to_owned());
    }
    Err("expected station/role/instance, station/role, a station or a selector such as room=a".into())
}

/// Checks the shape of a target: whether there is such an instance is for the manager to say.
pub(crate) fn target(text: &str) -> Result<String, String> {
    if is_selector(text) {
        return selector(text);
    }
    match text.parse() {
        Ok(Address::Manager | Address::Client(_) | Address::Instance { .. }) => Ok(text.to_owned()),
        // The station may be meant by `id:` or `mac:`, which are no names.
        _ if matches!(text.split('/').collect::<Vec<_>>()[..], [_, _] | [_, _, _]) => Ok(text.to_owned()),
        _ => {
            Err("expected station/role/instance, station/role, manager, client:NAME or a selector such as room=a"
                .into())
        }
    }
}

/// Whether a target is a selector, and may mean any number of instances.
pub(crate) fn is_selector(target: &str) -> bool {
    target.contains('=')
}

fn refused(text: String) -> Failure {
    Failure::with_code(REFUSED, text)
}
