//! Keepers: whatever becomes of their files, connections and programs, a program runs once and in hand.

use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use quilt_tests::{Fleet, World, is_alive};

const MAIN: &str = "cam-1/process/main";

/// A station with a program that notes its starts.
async fn world() -> World {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let script = format!("echo x >> {}; exec sleep 1000", world.folder().join("starts").display());
    world.apply(Fleet::new().shell(MAIN, &script).text()).await.with_code(0);
    world
}

fn starts(world: &World) -> usize {
    std::fs::read_to_string(world.folder().join("starts")).unwrap().lines().count()
}

fn state_folder(world: &World) -> PathBuf {
    world.station_folder("cam-1").join("station/instances/process/main/state")
}

async fn keeper(world: &World) -> u32 {
    let status = world.ctl(&["call", MAIN, "status"]).await.with_code(0).json();
    status["keeper"].as_u64().unwrap() as u32
}

/// As a cleaner of old files does.
fn remove_files(world: &World) {
    for entry in std::fs::read_dir(state_folder(world)).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
}

async fn restart_station(world: &mut World) {
    world.end_station("cam-1", Signal::SIGKILL).await;
    world.station("cam-1", &[]).await;
    world.until_state(MAIN, "active").await;
}

#[tokio::test]
async fn a_program_whose_keepers_files_are_removed_is_neither_run_twice_nor_out_of_hand() {
    let mut world = world().await;
    let pid = world.pid(MAIN).await;
    let keeper = keeper(&world).await;
    assert_eq!(std::fs::read_to_string(format!("/proc/{keeper}/comm")).unwrap(), "quilt-keeper\n");
    kill(Pid::from_raw(keeper as i32), Signal::SIGHUP).unwrap();
    remove_files(&world);
    restart_station(&mut world).await;
    assert_eq!((world.pid(MAIN).await, starts(&world)), (pid, 1));
    // Twice: what was made again is as good as what was there first.
    remove_files(&world);
    restart_station(&mut world).await;
    assert_eq!((world.pid(MAIN).await, starts(&world)), (pid, 1));
    remove_files(&world);
    world.ctl(&["restart", MAIN]).await.with_code(0);
    let view = world.until_state(MAIN, "active").await;
    assert!(!is_alive(pid), "the run before the restart goes on");
    assert_eq!((view.restarts, starts(&world)), (0, 2));

    // Even the folder can go: nobody reaches that run any more, so it is ended.
    let pid = world.pid(MAIN).await;
    std::fs::remove_dir_all(state_folder(&world)).unwrap();
    restart_station(&mut world).await;
    assert!(!is_alive(pid), "a run that nobody knows goes on beside the next");
    let pid = world.pid(MAIN).await;
    std::fs::remove_dir_all(state_folder(&world)).unwrap();
    world.ctl(&["stop", MAIN]).await.with_code(0);
    assert!(!is_alive(pid), "stopped, and its program runs");
}

#[tokio::test]
async fn a_lost_connection_with_a_keeper_is_not_the_end_of_its_program() {
    let world = world().await;
    let pid = world.pid(MAIN).await;
    // The keeper serves the newest connection, so that this one takes the station's place.
    let mut connection = UnixStream::connect(state_folder(&world).join("keeper.sock")).unwrap();
    connection.set_read_timeout(Some(std::time::Duration::from_secs(30))).unwrap();
    // Until the station has taken it back.
    let mut greeting = String::new();
    connection.read_to_string(&mut greeting).unwrap();
    let view = world.until_state(MAIN, "active").await;
    assert_eq!((view.pid, view.restarts, starts(&world)), (Some(pid), 0, 1));
    world.ctl(&["call", MAIN, "signal", "{\"signal\":\"KILL\"}"]).await.with_code(0);
    let view = world.eventually_other_pid(MAIN, pid).await;
    assert_eq!(view.restarts, 1);
}

#[tokio::test]
async fn a_program_that_a_nameless_signal_ends_is_known_to_have_ended() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let once = "restart = { policy = \"temporary\" }\n";
    let fleet = Fleet::new().with(MAIN, &format!("command = [\"sh\", \"-c\", \"kill -37 $$\"]\n{once}")).with(
        "cam-1/process/asked",
        &format!("command = [\"sleep\", \"1000\"]\nstop_signal = \"RTMIN+3\"\nstop_timeout = \"60s\"\n{once}"),
    );
    let file = world.fleet_file("f.toml", fleet.text());
    world.ctl(&["apply", "-f", &file]).await.with_code(0);
    let failed = world.until_state(MAIN, "failed").await;
    assert!(failed.detail.contains("killed by SIGRTMIN+3"), "{}", failed.detail);
    world.until_state("cam-1/process/asked", "active").await;
    // It would take a minute if the signal were not sent.
    world.ctl(&["stop", "cam-1/process/asked"]).await.with_code(0);
    assert_eq!(world.until_state("cam-1/process/asked", "stopped").await.pid, None);
}

/// All zombies of the machine, with their parents.
fn zombies() -> Vec<(u32, u32)> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let stat = processes.filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok());
    stat.filter_map(|stat| {
        let pid = stat.split(' ').next()?.parse().ok()?;
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        (fields.next()? == "Z").then_some(())?;
        Some((pid, fields.next()?.parse().ok()?))
    })
    .collect()
}

#[tokio::test]
async fn a_station_that_is_process_1_reaps_what_loses_its_parent_and_stops_as_it_is_told() {
    // A pid namespace of one's own is root's to make.
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let mut world = World::new().await;
    world.station_from_shell("cam-1", "exec unshare --pid --fork --kill-child --mount-proc \"$@\"").await;
    let unshare = world.station_pid("cam-1");
    let children = std::fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children")).unwrap();
    let first: u32 = children.trim().parse().unwrap();
    // What these leave is killed by their keepers, which are gone before they could reap it.
    let leaves = "command = [\"sh\", \"-c\", \"setsid sleep 1000 & exit 0\"]\nrestart = { policy = \"temporary\" }\n";
    let fleet = (0..4).fold(Fleet::new(), |fleet, number| fleet.with(&format!("cam-1/process/p{number}"), leaves));
    let file = world.fleet_file("f.toml", fleet.text());
    world.ctl(&["apply", "-f", &file]).await.with_code(0);
    for number in 0..4 {
        world.until_state(&format!("cam-1/process/p{number}"), "completed").await;
    }
    world.eventually("no zombie is left", async |_| zombies().iter().all(|(_, parent)| *parent != first)).await;
    kill(Pid::from_raw(first as i32), Signal::SIGTERM).unwrap();
    world.eventually("it has stopped", async |_| !is_alive(first)).await;
    assert_eq!(world.show("cam-1").await.state.name(), "disconnected");
}
