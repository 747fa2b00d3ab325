//! The typed bodies between station and manager, and between tools and manager.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quilt_protocol::codec::from_bincode;
use quilt_protocol::control::{
    Apply, Control, Document, Logs, Plan, Registered, Registration, Report, Resolve, UpdateConfiguration, Verdict,
};

fuzz_target!(|data: &[u8]| {
    let _ = from_bincode::<Registration>("x", data);
    let _ = from_bincode::<Registered>("x", data);
    let _ = from_bincode::<Report>("x", data);
    let _ = from_bincode::<UpdateConfiguration<'_>>("x", data);
    let _ = from_bincode::<Plan>("x", data);
    let _ = from_bincode::<Verdict>("x", data);
    let _ = from_bincode::<Control>("x", data);
    let _ = serde_json::from_slice::<Document>(data);
    let _ = serde_json::from_slice::<Apply>(data);
    let _ = serde_json::from_slice::<Resolve>(data);
    let _ = serde_json::from_slice::<Logs>(data);
});
