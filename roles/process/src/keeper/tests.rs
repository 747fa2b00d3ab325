use std::fs;
use std::future::Future;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::pin::pin;
use std::process::{Child, Command, Stdio};
use std::task::{Context, Waker};

use quilt_core::processes::ProcessStat;
use tempfile::TempDir;

use super::ending::{force_end, until_free, until_gone};
use super::*;

/// A process that looks like the keeper of a folder and carries the mark of its run. It ends when its standard input is closed.
struct Fake {
    folder: TempDir,
    process: Child,
}

impl Fake {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // The shell is given the file as its script, by the name of a keeper's first argument.
        fs::write(folder.path().join(KEEPER), "read line").unwrap();
        let mut command = Command::new("sh");
        command.arg0(KEEPER_NAME).arg(KEEPER).arg(folder.path()).current_dir(&folder);
        let process = command.env(RUN_VARIABLE, "r").stdin(Stdio::piped()).spawn().unwrap();
        Self { folder, process }
    }

    fn paths(&self) -> Paths {
        Paths::new(self.folder.path())
    }

    /// A run that this is the keeper of, whose program is long gone.
    fn run(&self) -> Run {
        let keeper = ProcessStat::read(self.process.id()).unwrap().unwrap();
        Run {
            id: "r".into(),
            digest: "d".into(),
            // Above every number that the kernel gives.
            pid: 1 << 30,
            keeper: keeper.pid,
            boot_id: processes::boot_id().unwrap().into(),
            started_ms: 0,
            stop_timeout_ms: 0,
            started_ticks: 1,
            keeper_started_ticks: keeper.started_ticks,
            pid_namespace: processes::pid_namespace().unwrap().into(),
            pipes: [0; 2],
            stop_signal: 15,
        }
    }

    fn is_alive(&self) -> bool {
        ProcessStat::read(self.process.id()).unwrap().is_some()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The name is set by the exec, which comes a little after the fork.
fn until_named(fake: &Fake, run: &Run) {
    while fake.paths().keeper_of(run).unwrap().is_none() {
        std::thread::yield_now();
    }
}

#[tokio::test]
async fn a_run_is_over_for_its_station_only_when_its_keeper_is_gone() {
    let mut fake = Fake::new();
    let (paths, run) = (fake.paths(), fake.run());
    until_named(&fake, &run);
    let keeper = paths.keeper_of(&run).unwrap();
    let mut gone = pin!(until_gone(keeper.as_ref()));
    assert!(gone.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    drop(fake.process.stdin.take());
    gone.await;
    assert!(!fake.is_alive());
    assert_eq!(fake.process.wait().unwrap().code(), Some(1), "it was killed rather than waited for");
}

#[tokio::test(start_paused = true)]
async fn a_keeper_that_stays_after_the_end_of_its_run_is_killed() {
    let mut fake = Fake::new();
    let run = fake.run();
    until_named(&fake, &run);
    until_gone(fake.paths().keeper_of(&run).unwrap().as_ref()).await;
    assert_eq!(fake.process.wait().unwrap().signal(), Some(nix::libc::SIGKILL));
}

#[tokio::test]
async fn an_end_that_was_forced_in_vain_is_not_over_and_names_who_is_at_work() {
    let folder = tempfile::tempdir().unwrap();
    let paths = Paths::new(folder.path());
    // It is no keeper, so nobody may kill it.
    let mut holder = Command::new("sh");
    holder.args(["-c", "read line"]).stdin(Stdio::piped()).stdout(paths.lock().unwrap());
    let process = holder.spawn().unwrap();
    drop(holder);
    let mut holder = Fake { folder, process };
    let (said, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let mut free = pin!(until_free(&paths, None, None, Look::Keeper, |survivor| said.send(survivor).unwrap()));
    let text = tokio::select! {
        () = &mut free => panic!("it is held"),
        text = heard.recv() => text.unwrap(),
    };
    assert!(text.contains(&format!("process {} still holds", holder.process.id())), "{text}");
    let instances = tempfile::tempdir().unwrap();
    fs::create_dir_all(instances.path().join("process/p")).unwrap();
    std::os::unix::fs::symlink(paths.folder(), instances.path().join("process/p/state")).unwrap();
    let stopped = stop_all(instances.path()).await;
    assert_eq!((stopped.count, stopped.survivors.len()), (0, 1), "{stopped:?}");
    assert!(holder.is_alive());
    drop(holder.process.stdin.take());
    free.await;
}

#[tokio::test]
async fn the_run_on_record_says_who_its_keeper_is_and_numbers_of_elsewhere_say_nothing() {
    let fake = Fake::new();
    let (paths, run) = (fake.paths(), fake.run());
    until_named(&fake, &run);
    let elsewhere = [
        Run { boot_id: "another boot".into(), ..run.clone() },
        Run { pid_namespace: "pid:[1]@1".into(), ..run.clone() },
        Run { keeper_started_ticks: run.keeper_started_ticks - 1, ..run.clone() },
        Run { keeper: std::process::id(), ..run.clone() },
    ];
    for run in &elsewhere {
        fs::write(paths.run(), serde_json::to_vec(run).unwrap()).unwrap();
        assert!(!paths.is_kept().unwrap(), "{run:?}");
    }
    // It carries the mark of the run, but in this boot or namespace the mark was not given.
    for run in &elsewhere[..2] {
        leftovers::kill(run).unwrap();
        force_end_recorded(run).await;
    }
    assert!(fake.is_alive());
    // The record is enough, also without the lock.
    fs::write(paths.run(), serde_json::to_vec(&run).unwrap()).unwrap();
    assert!(paths.is_kept().unwrap());
    // One of an earlier release does not say when its keeper began.
    fs::write(paths.run(), serde_json::to_vec(&Run { keeper_started_ticks: 0, ..run.clone() }).unwrap()).unwrap();
    assert!(paths.is_kept().unwrap());
    // So is the lock, whatever was removed.
    fs::remove_file(paths.run()).unwrap();
    assert!(!paths.is_kept().unwrap());
    let lock = paths.lock().unwrap();
    assert!(paths.is_kept().unwrap());
    assert!(paths.lock().is_err(), "two have the lock");
    drop(lock);
    paths.lock().unwrap();
    // A leftover with the mark of the run is ended where the mark means something.
    leftovers::kill(&Run { keeper: 1 << 30, ..run }).unwrap();
    assert!(!fake.is_alive());
}

/// In a folder that nothing else names, so that only the record can lead to a process.
async fn force_end_recorded(run: &Run) {
    let empty = tempfile::tempdir().unwrap();
    force_end(&Paths::new(empty.path()), Some(run), None).await;
}

#[test]
fn a_program_that_was_told_to_stop_has_not_done_its_work_whatever_its_code() {
    let exit: Exit = serde_json::from_str(r#"{"run":"r","code":0,"signal":null,"at_ms":1}"#).unwrap();
    assert!(exit.is_success(&[0, 3]) && !exit.is_success(&[3]));
    for request in [StopRequest::Station, StopRequest::OrphanTimeout, StopRequest::Signal] {
        let exit = Exit { stopped_by: Some(request), ..exit.clone() };
        assert!(!exit.is_success(&[0]));
        let read: Exit = serde_json::from_slice(&serde_json::to_vec(&exit).unwrap()).unwrap();
        assert_eq!(read, exit);
        assert!(exit.to_string().starts_with("exit code 0; its "), "{exit}");
    }
}

#[test]
fn a_fifo_in_the_place_of_a_record_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let paths = Paths::new(folder.path());
    assert_eq!(paths.read_run().unwrap(), None);
    nix::unistd::mkfifo(&paths.run(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let error = paths.read_run().unwrap_err().to_string();
    assert!(error.contains("run.json: expected a regular file"), "{error}");
}
