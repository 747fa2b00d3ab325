//! Who a station is, and what is known about its machine.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use anyhow::Context as _;
use quilt_core::files;
use quilt_protocol::StationId;
use quilt_protocol::control::Facts;
use quilt_protocol::control::bounds::{FACT_MAX, cut};

const FILE: &str = "id";
/// The longest such file, in bytes.
const FILE_MAX: u64 = 1024;

/// Reads the station's identity, or makes one on its first start.
pub(crate) fn load(folder: &Path) -> anyhow::Result<StationId> {
    let path = folder.join(FILE);
    match files::read_regular(&path, FILE_MAX).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()) {
        Ok(text) => text.trim().parse().with_context(|| {
            format!("{} is not a station's identity; restore it, or remove it to become a new station", path.display())
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => renew(folder),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

/// Makes a new identity, as for a cloned disk.
pub(crate) fn renew(folder: &Path) -> anyhow::Result<StationId> {
    let (path, id) = (folder.join(FILE), StationId::random());
    files::write_atomically(&path, format!("{id}\n").as_bytes()).with_context(|| path.display().to_string())?;
    Ok(id)
}

/// Gathers facts; `local` is this end of the connection to the manager.
pub(crate) fn facts(local: IpAddr) -> Facts {
    let mut more = BTreeMap::from([
        ("os".to_owned(), os_name()),
        ("arch".to_owned(), std::env::consts::ARCH.to_owned()),
        ("cores".to_owned(), std::thread::available_parallelism().map_or(0, usize::from).to_string()),
    ]);
    if let Some(kernel) = read("/proc/sys/kernel/osrelease") {
        more.insert("kernel".into(), kernel);
    }
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    if let Some(total) = memory.lines().find_map(|line| line.strip_prefix("MemTotal:")) {
        more.insert("memory".into(), total.trim().to_owned());
    }
    let interface = if local.is_loopback() { default_route_interface() } else { interface_of(local) };
    Facts {
        hostname: hostname::get().map(|name| fact(&name.to_string_lossy())).unwrap_or_default(),
        mac: interface.and_then(|name| mac_of(&name)),
        ip: Some(local.to_string()),
        machine_id: read("/etc/machine-id").filter(|id| !id.is_empty()),
        boot_id: boot_id(),
        software: format!("quilt-station {}", env!("CARGO_PKG_VERSION")),
        more: more.into_iter().collect(),
    }
}

/// A fact from a file, as much of it as a manager takes.
fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| fact(text.trim()))
}

fn fact(text: &str) -> String {
    let mut text = text.to_owned();
    cut(&mut text, FACT_MAX);
    text
}

/// Tells this boot of the machine from others.
pub(crate) fn boot_id() -> Option<String> {
    read("/proc/sys/kernel/random/boot_id")
}

fn os_name() -> String {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| std::env::consts::OS.to_owned(), |name| fact(name.trim_matches('"')))
}

/// The MAC address of an interface; absent rather than made up.
fn mac_of(interface: &str) -> Option<String> {
    let mac = mac_address::mac_address_by_name(interface).ok()??;
    (mac.bytes() != [0; 6]).then(|| mac.to_string().to_lowercase())
}

fn interface_of(local: IpAddr) -> Option<String> {
    let mut addresses = nix::ifaddrs::getifaddrs().ok()?;
    addresses.find_map(|address| {
        let socket = address.address?;
        let ip: IpAddr = match (socket.as_sockaddr_in(), socket.as_sockaddr_in6()) {
            (Some(v4), _) => v4.ip().into(),
            (_, Some(v6)) => v6.ip().into(),
            _ => return None,
        };
        (ip == local).then_some(address.interface_name)
    })
}

/// The interface of the default route with the lowest metric.
fn default_route_interface() -> Option<String> {
    let routes = fs::read_to_string("/proc/net/route").ok()?;
    let defaults = routes.lines().skip(1).filter_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let is_default = *fields.get(1)? == "00000000" && *fields.get(7)? == "00000000";
        is_default.then_some((fields.get(6)?.parse::<u32>().ok()?, (*fields.first()?).to_owned()))
    });
    defaults.min().map(|(_, interface)| interface)
}
