//! What a process that a station starts begins with: what is configured, and nothing of whoever started the station.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use quilt_tests::{Fleet, World, plugins};

/// What a process began with, from its folder in `/proc` or a copy of that.
struct Began(PathBuf);

impl Began {
    fn of(pid: u32) -> Self {
        Self(format!("/proc/{pid}").into())
    }

    fn text(&self, file: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.0.join(file)).unwrap()).into_owned()
    }

    fn status(&self, key: &str) -> String {
        let status = self.text("status");
        status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(":\t")).unwrap().to_owned()
    }

    fn nice(&self) -> i32 {
        self.text("stat").rsplit_once(')').unwrap().1.split_whitespace().nth(16).unwrap().parse().unwrap()
    }

    fn open_files(&self) -> String {
        let limits = self.text("limits");
        let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
        line.split_whitespace().next().unwrap().to_owned()
    }

    fn open(&self) -> Vec<PathBuf> {
        let open = fs::read_dir(self.0.join("fd")).unwrap();
        open.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok()).collect()
    }

    /// Nothing of the shell that started the station.
    #[track_caller]
    fn assert_clean(&self, lock: &Path) {
        assert!(!self.open().iter().any(|open| open == lock), "{:?}", self.open());
        let ignored = u64::from_str_radix(&self.status("SigIgn"), 16).unwrap();
        // A Rust program ignores it for itself.
        let pipe = 1 << (Signal::SIGPIPE as u64 - 1);
        assert_eq!(ignored & !pipe, 0, "ignored signals: {ignored:x}");
        for variable in ["NOTIFY_SOCKET=", "WATCHDOG_USEC=", "LISTEN_FDS=", "INVOCATION_ID=", "JOURNAL_STREAM="] {
            assert!(!self.text("environ").split('\0').any(|set| set.starts_with(variable)), "{variable}");
        }
    }

    /// As documented for what has nothing else configured.
    #[track_caller]
    fn assert_default(&self) {
        let score = self.text("oom_score_adj").trim().to_owned();
        let seen = (self.status("Umask"), self.nice(), score, self.open_files());
        assert_eq!(seen, ("0022".into(), 0, "0".into(), "1024".into()));
    }
}

#[tokio::test]
async fn what_a_station_starts_has_nothing_of_whoever_started_the_station() {
    let mut world = World::new().await;
    let lock = world.folder().join("lock");
    let inherited = format!(
        "exec 9> {}; flock 9; trap '' QUIT USR1; umask 077; ulimit -Sn 4096; echo 300 > /proc/self/oom_score_adj; \
         export NOTIFY_SOCKET=/x WATCHDOG_USEC=1 LISTEN_FDS=1 INVOCATION_ID=2 JOURNAL_STREAM=3:4; exec nice -n 3 \"$@\"",
        lock.display()
    );
    world.station_from_shell("cam-1", &inherited).await;
    world.plug(&plugins::hostile(world.folder(), "good"), "good.so");
    world.until_offered("cam-1", "good").await;
    let copy = world.folder().join("check");
    fs::create_dir_all(copy.join("fd")).unwrap();
    // A check is gone before it can be looked at, so it notes itself what it began with. The shell's own descriptor of the
    // folder is gone when it is to be copied.
    let check = format!(
        "cd /proc/$$ && cp status stat environ limits oom_score_adj {0} && {{ cp -d fd/* {0}/fd; true; }}",
        copy.display()
    );
    let configured =
        "command = [\"sleep\", \"1000\"]\numask = \"027\"\nnice = 7\noom_score_adj = 500\nopen_files = 77\n";
    let ready = format!("ready = {{ command = [\"sh\", \"-c\", {check:?}] }}\n");
    let fleet = Fleet::new()
        .with("cam-1/process/main", &format!("command = [\"sleep\", \"1000\"]\n{ready}"))
        .with("cam-1/process/configured", configured)
        .with("cam-1/good/main", "");
    world.apply(fleet.text()).await.with_code(0);
    let status = world.ctl(&["call", "cam-1/process/main", "status"]).await.with_code(0).json();
    let keeper = Began::of(status["keeper"].as_u64().unwrap() as u32);
    let program = Began::of(world.pid("cam-1/process/main").await);
    let plugin = Began::of(world.pid("cam-1/good/main").await);
    for process in [&keeper, &program, &plugin, &Began(copy)] {
        process.assert_clean(&lock);
    }
    assert_eq!((program.open().len(), program.status("SigBlk")), (3, "0000000000000000".into()));
    for process in [&keeper, &program] {
        process.assert_default();
    }
    assert_eq!((plugin.nice(), plugin.status("Umask"), plugin.text("oom_score_adj")), (0, "0022".into(), "0\n".into()));
    let configured = Began::of(world.pid("cam-1/process/configured").await);
    let seen =
        (configured.status("Umask"), configured.nice(), configured.text("oom_score_adj"), configured.open_files());
    assert_eq!(seen, ("0027".into(), 7, "500\n".into(), "77".into()));

    // The lock that the station was started under is free when it is gone.
    assert!(File::open(&lock).unwrap().try_lock().is_err());
    world.end_station("cam-1", Signal::SIGTERM).await;
    File::open(&lock).unwrap().try_lock().unwrap();
}

/// What a folder holds, with modes.
fn modes(folder: &Path) -> Vec<(PathBuf, u32)> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let all = entries.flat_map(|path| {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let mut found = if metadata.is_dir() { modes(&path) } else { Vec::new() };
        found.push((path, metadata.mode() & 0o7777));
        found
    });
    all.collect()
}

#[tokio::test]
async fn what_a_daemon_makes_is_its_own_users_alone_under_any_umask_and_links_at_its_log_and_pid_file_are_refused() {
    let mut world = World::empty();
    let own = |world: &World, name: &str| {
        let folder = world.folder().join(name);
        fs::create_dir(&folder).unwrap();
        (folder.join("daemon.log"), folder.join("daemon.pid"))
    };
    let (log, pid) = own(&world, "of-manager");
    let script = |log: &Path, pid: &Path| {
        format!("umask 0; exec \"$@\" --log-file {} --pid-file {}", log.display(), pid.display())
    };
    world.start_manager_from_shell(&script(&log, &pid)).await;
    let (log, pid) = own(&world, "of-station");
    world.station_from_shell("cam-1", &script(&log, &pid)).await;
    let fleet = Fleet::new().with("cam-1/counter/c", "start = 1").shell("cam-1/process/p", "echo up; exec sleep 1000");
    world.apply(fleet.text()).await.with_code(0);
    world.ctl(&["stop", "cam-1/counter/c"]).await.with_code(0);
    let folders = ["manager", "stations/cam-1", "of-manager", "of-station"].map(|name| world.folder().join(name));
    let open: Vec<_> = folders.iter().flat_map(|folder| modes(folder)).filter(|(_, mode)| mode & 0o077 != 0).collect();
    assert!(open.is_empty(), "{open:?}");
    assert!(log.exists() && pid.exists());

    let target = world.folder().join("somebodys");
    fs::write(&target, "theirs").unwrap();
    let link = world.folder().join("link");
    std::os::unix::fs::symlink(&target, &link).unwrap();
    for (binary, flag) in ["quilt-manager", "quilt-station"]
        .into_iter()
        .flat_map(|binary| ["--log-file", "--pid-file"].map(|flag| (binary, flag)))
    {
        let mut command = world.command(binary);
        command.arg("--data-dir").arg(world.folder().join("other")).arg(flag).arg(&link);
        let output = command.output().await.unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && text.contains("link"), "{binary} {flag}: {text}");
    }
    assert_eq!(fs::read_to_string(&target).unwrap(), "theirs");
}

#[tokio::test]
async fn a_daemon_refuses_a_data_folder_that_others_can_change_and_a_fifo_in_the_place_of_a_record_at_once() {
    let world = World::empty();
    let refused = async |binary: &str, folder: &Path, expected: &str| {
        let mut command = world.command(binary);
        let output = command.arg("--data-dir").arg(folder).args(["--log-level", "error"]).output().await.unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && text.contains(expected), "{binary}: {text}");
    };
    for (binary, name) in [("quilt-manager", "manager"), ("quilt-station", "station")] {
        let folder = world.folder().join(format!("of-{name}"));
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
        refused(binary, &folder, "can be changed by others").await;
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
        // To give a file away is root's to do.
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(&folder, Some(12345), None).unwrap();
            refused(binary, &folder, "belongs to user 12345").await;
        }
    }
    let folder = world.folder().join("with-fifo");
    fs::create_dir_all(folder.join("station")).unwrap();
    nix::unistd::mkfifo(&folder.join("station/accepted.0"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    refused("quilt-station", &folder, "found a FIFO").await;
}

#[tokio::test]
async fn a_ready_check_runs_as_the_program_that_it_looks_after_and_its_words_are_shown() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    // Only root may run programs as somebody else.
    let is_root = nix::unistd::geteuid().is_root();
    let (user, expected) = if is_root {
        ("user = \"nobody\"\ngroup = \"daemon\"\n", "nobody daemon")
    } else {
        ("", "$(id -un) $(id -gn)")
    };
    let sees =
        format!("test \"$(id -un) $(id -gn) $MODE $PWD\" = \"{expected} fast /usr\" || {{ id; pwd; exit 3; }} >&2");
    let keys = format!(
        "command = [\"sleep\", \"1000\"]\nenv = {{ MODE = \"fast\" }}\ncwd = \"/usr\"\n{user}\
         ready = {{ command = [\"sh\", \"-c\", {sees:?}] }}\n"
    );
    let never = "command = [\"sleep\", \"1000\"]\nrestart = { policy = \"temporary\" }\n\
                 ready = { command = [\"sh\", \"-c\", \"echo no database >&2; exit 3\"], within = \"2s\", every = \"50ms\" }\n";
    let file = world
        .fleet_file("f.toml", Fleet::new().with("cam-1/process/main", &keys).with("cam-1/process/never", never).text());
    world.ctl(&["apply", "-f", &file]).await.with_code(0);
    world.until_state("cam-1/process/main", "active").await;
    let never = world.until_state("cam-1/process/never", "failed").await;
    assert!(never.detail.contains("exit code 3; its last lines: no database"), "{}", never.detail);
}
