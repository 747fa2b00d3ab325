use std::io::Write as _;
use std::os::unix::net::UnixListener;

use quilt_plugin_api::testing::Harness;
use quilt_plugin_api::{BoxFuture, Instance, RoleDescription, RoleFactory, factory};

use super::*;
use crate::program::known;

/// The role as a restarted station starts it: the configuration was judged when it was pushed.
struct Accepted(Arc<dyn RoleFactory>);

impl RoleFactory for Accepted {
    fn description(&self) -> &RoleDescription {
        self.0.description()
    }
    fn validate(&self, _: &[u8]) -> BoxFuture<'static, Result<(), RoleError>> {
        Box::pin(async { Ok(()) })
    }
    fn start(&self, config: &[u8], cx: RoleContext) -> BoxFuture<'static, Result<Box<dyn Instance>, RoleError>> {
        self.0.start(config, cx)
    }
    fn abandon(&self, cx: RoleContext) -> BoxFuture<'static, ()> {
        self.0.abandon(cx)
    }
}

#[tokio::test]
async fn a_program_is_found_again_when_nobody_can_say_who_its_user_is() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    std::fs::create_dir(&state).unwrap();
    let config = serde_json::json!({ "command": ["sleep", "1000"], "user": "of-a-directory-that-is-away" });
    let role = Accepted(factory::<Process>());
    let refused = Harness::start_one_of(&role, config.clone(), folder.path()).await.err().unwrap().to_string();
    assert!(refused.contains("a name known to this machine"), "{refused}");

    // A keeper, as far as the station can see.
    let _lock = Paths::new(&state).lock().unwrap();
    let keeper = UnixListener::bind(state.join("keeper.sock")).unwrap();
    let parsed = serde_json::from_value(config.clone()).unwrap();
    let run = keeper::Run {
        id: "run".into(),
        digest: digest(&parsed),
        pid: 7,
        keeper: 8,
        boot_id: quilt_core::processes::boot_id().unwrap().into(),
        started_ms: 1,
        stop_timeout_ms: 0,
        started_ticks: 0,
        keeper_started_ticks: 0,
        pid_namespace: String::new(),
        pipes: [0; 2],
        stop_signal: 15,
    };
    let keeper = std::thread::spawn(move || {
        let (mut station, _) = keeper.accept().unwrap();
        writeln!(station, "{}", serde_json::to_string(&keeper::FromKeeper::Running(run)).unwrap()).unwrap();
        station
    });
    let found = Harness::start_one_of(&role, config, folder.path()).await.unwrap();
    let _station = keeper.join().unwrap();
    let status = found.call(Status {}).await;
    assert!(matches!(&status, quilt_plugin_api::testing::Outcome::Reply(status) if status.pid == 7), "{status:?}");
}

#[tokio::test]
async fn what_linux_cannot_pass_to_a_program_is_refused_in_the_plan() {
    let judge = async |argument: usize, value: usize| {
        let config =
            serde_json::json!({ "command": ["echo", "x".repeat(argument)], "env": { "A": "x".repeat(value) } });
        factory::<Process>().validate(config.to_string().as_bytes()).await
    };
    let longest = 32 * nix::unistd::sysconf(SysconfVar::PAGE_SIZE).unwrap().unwrap() as usize - 1;
    assert_eq!(judge(longest, longest - 2).await, Ok(()));
    let Err(RoleError::Rejected(wrong)) = judge(longest + 1, longest - 1).await else { panic!("it was taken") };
    let keys: Vec<_> = wrong.iter().map(|wrong| wrong.key.as_deref()).collect();
    assert_eq!(keys, [Some("command[1]"), Some("env.A")], "{wrong:?}");
}

#[test]
fn a_lookup_that_fails_is_told_apart_from_a_name_that_is_unknown() {
    let mut wrong = Vec::new();
    assert_eq!(known::<u32>("user", "ada", Ok(None), &mut wrong), None);
    assert_eq!(known::<u32>("user", "ada", Err(nix::Error::EIO), &mut wrong), None);
    assert_eq!(known("user", "ada", Ok(Some(7)), &mut wrong), Some(7));
    let [unknown, away] = &wrong[..] else { panic!("{wrong:?}") };
    assert_eq!(unknown.got, "\"ada\"");
    assert!(away.got.contains("cannot be looked up"), "{away:?}");
}

#[tokio::test]
async fn a_keeper_that_says_nothing_is_shown_and_is_no_failure_and_its_end_is_seen() {
    use std::os::unix::process::CommandExt as _;

    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    std::fs::create_dir(&state).unwrap();
    let config = serde_json::json!({ "command": ["sleep", "1000"] });
    // A shell that is called as a keeper is, and is given the file as its script, by the name of a keeper's first argument.
    std::fs::write(state.join(keeper::KEEPER), "read line").unwrap();
    let mut command = std::process::Command::new("sh");
    command.arg0(keeper::KEEPER_NAME).arg(keeper::KEEPER).arg(&state).current_dir(&state);
    let mut silent = command.stdin(std::process::Stdio::piped()).spawn().unwrap();
    let _socket = UnixListener::bind(state.join("keeper.sock")).unwrap();
    let run = serde_json::json!({
        "id": "run",
        "digest": digest(&serde_json::from_value(config.clone()).unwrap()),
        "pid": 1 << 30,
        "keeper": silent.id(),
        "boot_id": quilt_core::processes::boot_id().unwrap(),
        "pid_namespace": quilt_core::processes::pid_namespace().unwrap(),
        "started_ms": 1,
        "started_ticks": 1,
        "keeper_started_ticks": quilt_core::processes::ProcessStat::read(silent.id()).unwrap().unwrap().started_ticks,
    });
    std::fs::write(state.join("run.json"), run.to_string()).unwrap();
    // The name is set by the exec, which comes a little after the fork.
    while !Paths::new(&state).is_kept().unwrap() {
        std::thread::yield_now();
    }
    let mut found = Harness::start::<Process>(config, folder.path()).await.unwrap();
    let mut work = found.run().await.unwrap();
    // It is dropped and taken up again, as by a station that looks after something else meanwhile.
    let waiting = "unreachable: its keeper";
    while !format!("{:?}", found.seen().reports).contains(waiting) {
        assert!(tokio::time::timeout(std::time::Duration::from_millis(10), &mut work).await.is_err());
    }
    let signal = found.call(Signal { signal: "HUP".into() }).await;
    assert!(matches!(signal, quilt_plugin_api::testing::Outcome::Error(SignalError::Unanswered)), "{signal:?}");
    drop(silent.stdin.take());
    silent.wait().unwrap();
    let ended = work.await.unwrap_err().to_string();
    assert!(ended.contains("ended with its keeper"), "{ended}");
}
