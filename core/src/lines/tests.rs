use super::reader::READ_SIZE;
use super::*;

fn texts(lines: &[Line]) -> Vec<String> {
    lines.iter().map(|line| line.text().into_owned()).collect()
}

fn all(reader: &mut Reader) -> Vec<Line> {
    std::iter::repeat_with(|| reader.more().unwrap()).take_while(|lines| !lines.is_empty()).flatten().collect()
}

#[tokio::test]
async fn a_reader_follows_two_writers_across_a_rotation_without_losing_a_line() {
    let folder = tempfile::tempdir().unwrap();
    let mut one = Writer::open(folder.path()).unwrap();
    let mut two = Writer::open(folder.path()).unwrap();
    one.append("out", "first\nsecond\n").unwrap();
    let mut reader = Follower::open(folder.path(), |log| Reader::open(log, 1)).await.unwrap();
    assert_eq!(texts(&reader.more().await.unwrap()), ["second"]);
    let big = "x".repeat(LINE_MAX);
    let writing = std::thread::spawn(move || {
        for number in 0..FILE_MAX as usize / LINE_MAX * 3 / 2 {
            let writer = if number % 2 == 0 { &mut one } else { &mut two };
            writer.append("err", &format!("{number}{}", &big[8..])).unwrap();
        }
    });
    let mut expected = 0;
    while expected < FILE_MAX as usize / LINE_MAX * 3 / 2 {
        for line in reader.next().await.unwrap() {
            assert!(line.text().starts_with(&format!("{expected}x")), "{expected} is missing");
            expected += 1;
        }
    }
    writing.join().unwrap();
    assert!(folder.path().join(OLDER).exists());
}

#[test]
fn a_reader_that_comes_back_goes_on_where_it_was_and_says_when_that_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(folder.path()).unwrap();
    let rotate = || fs::rename(folder.path().join(CURRENT), folder.path().join(OLDER)).unwrap();
    let back = |position: &str| Reader::resume(folder.path(), position.parse().unwrap()).unwrap();
    let at_start = Reader::open(folder.path(), 1).unwrap().position().unwrap().to_string();
    writer.append("out", "one\ntwo\n").unwrap();
    let mut reader = Reader::open(folder.path(), 1).unwrap();
    assert_eq!(texts(&reader.more().unwrap()), ["two"]);
    let position = reader.position().unwrap().to_string();
    assert!(all(&mut back(&position)).is_empty());
    writer.append("out", "three\n").unwrap();
    assert_eq!(texts(&all(&mut back(&position))), ["three"]);
    rotate();
    Writer::open(folder.path()).unwrap().append("out", "four\n").unwrap();
    assert_eq!(texts(&all(&mut back(&position))), ["three", "four"]);
    assert_eq!(texts(&all(&mut back(&at_start))), ["one", "two", "three", "four"]);
    rotate();
    let lost = "lines were lost here: they came faster than they were read";
    assert_eq!(texts(&all(&mut back(&position))), [lost, "four"]);
    assert!("1 2".parse::<Position>().is_err());
}

#[test]
fn a_writer_of_one_line_notices_that_the_file_is_full() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(CURRENT), vec![b'x'; FILE_MAX as usize]).unwrap();
    Writer::new(folder.path()).append("quilt", "it failed").unwrap();
    assert!(folder.path().join(OLDER).exists());
    assert!(fs::metadata(folder.path().join(CURRENT)).unwrap().len() < 100);
}

#[test]
fn the_last_lines_are_found_from_the_end_across_both_files() {
    let folder = tempfile::tempdir().unwrap();
    let line = |number: usize| format!("2026-01-01T00:00:00.000Z out {number}\n");
    let write = |name: &str, numbers: std::ops::Range<usize>| {
        fs::write(folder.path().join(name), numbers.map(line).collect::<String>()).unwrap();
    };
    write(OLDER, 0..5000);
    write(CURRENT, 5000..10_000);
    for count in [0, 1, 2, 4999, 5000, 5001, 7000, 10_000, 20_000] {
        let mut reader = Reader::open(folder.path(), count).unwrap();
        let mut numbers = Vec::new();
        loop {
            let lines = reader.more().unwrap();
            if lines.is_empty() {
                break;
            }
            assert!(lines.len() < 2 * READ_SIZE / line(0).len(), "it was read at once");
            numbers.extend(lines.iter().map(|line| line.text().parse::<usize>().unwrap()));
        }
        let expected: Vec<_> = (10_000 - count.min(10_000)..10_000).collect();
        assert_eq!(numbers, expected, "the last {count}");
    }
}

#[test]
fn the_records_of_a_stream_joined_are_the_bytes_that_came() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(folder.path()).unwrap();
    // One more byte in front moves every character's edges across the cut.
    let long =
        |shift: usize| [&b"y".repeat(shift), "\u{20ac}\u{1f600}".repeat(LINE_MAX / 3).as_bytes(), b"\n"].concat();
    let written = [long(0), long(1), long(2), long(3), b"10%\r20%".to_vec(), b"\xff\n\n".to_vec(), b"end".to_vec()];
    for (number, bytes) in written.iter().enumerate() {
        writer.copy("out", bytes).unwrap();
        writer.append("quilt", &number.to_string()).unwrap();
    }
    let lines = all(&mut Reader::open(folder.path(), usize::MAX).unwrap());
    let mut joined = Vec::new();
    for line in lines.iter().filter(|line| line.stream == "out") {
        assert!(line.bytes.len() <= LINE_MAX);
        assert_eq!(line.raw(), (line.bytes == b"\xff").then_some(&b"\xff"[..]), "a character was split");
        joined.extend_from_slice(&line.bytes);
        if !line.continues {
            joined.push(b'\n');
        }
    }
    assert!(joined == written.concat());
    // What is counted are lines, not pieces.
    writer.copy("out", &[&long(0)[..], b"last\n"].concat()).unwrap();
    let lines = all(&mut Reader::open(folder.path(), 2).unwrap());
    assert_eq!(lines.iter().filter(|line| !line.continues).count(), 2);
    assert!(lines.len() > 2 && lines[0].bytes.starts_with("\u{20ac}".as_bytes()));
}

#[test]
fn a_torn_record_of_another_writer_does_not_swallow_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(folder.path()).unwrap();
    fs::write(folder.path().join(CURRENT), "2026-01-01T00:00:00.000Z out whole\n2026-01-01T00:00:00.000Z out to")
        .unwrap();
    writer.append("err", "next").unwrap();
    let lines = all(&mut Reader::open(folder.path(), 10).unwrap());
    assert_eq!(texts(&lines), ["whole", "to", "next"]);
}

#[test]
fn lines_that_cannot_be_written_are_counted_and_told_before_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let mut writer = Writer::open(&log).unwrap();
    writer.append("out", "before").unwrap();
    fs::remove_dir_all(&log).unwrap();
    fs::write(&log, "in the way").unwrap();
    for number in 0..1000 {
        writer.append("out", &number.to_string()).unwrap_err();
    }
    assert!(writer.has_unreported_losses());
    fs::remove_file(&log).unwrap();
    // Also one who writes nothing more can say so.
    writer.report_losses().unwrap();
    writer.append("out", "after").unwrap();
    let lines = all(&mut Reader::open(&log, 10).unwrap());
    assert!(lines[0].text().starts_with("1000 lines were lost here: ") && lines[0].stream == "quilt", "{lines:?}");
    assert_eq!(texts(&lines[1..]), ["after"]);
}

#[tokio::test]
async fn a_log_that_is_emptied_in_place_is_followed_from_its_new_beginning() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(folder.path()).unwrap();
    writer.append("out", &"x".repeat(100)).unwrap();
    let mut reader = Follower::open(folder.path(), |log| Reader::open(log, 10)).await.unwrap();
    assert_eq!(reader.next().await.unwrap().len(), 1);
    let current = folder.path().join(CURRENT);
    let empty = || fs::OpenOptions::new().write(true).open(&current).unwrap().set_len(0).unwrap();
    let followed = async |reader: &mut Follower, count: usize| {
        let mut lines = Vec::new();
        while lines.len() < count {
            lines.extend(reader.next().await.unwrap());
        }
        texts(&lines)
    };
    empty();
    writer.append("out", "short").unwrap();
    assert_eq!(followed(&mut reader, 2).await, ["the log was emptied here", "short"]);
    // It has grown beyond what had been read before anybody looks again.
    empty();
    while fs::metadata(&current).unwrap().len() < 300 {
        writer.append("out", &"y".repeat(70)).unwrap();
    }
    let lines = followed(&mut reader, 4).await;
    assert_eq!(lines[0], "the log was emptied here");
    assert!(lines[1..].iter().all(|line| *line == "y".repeat(70)), "{lines:?}");
    empty();
    assert_eq!(followed(&mut reader, 1).await, ["the log was emptied here"]);
}

#[tokio::test]
async fn a_log_whose_folder_is_removed_is_written_and_followed_again() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let mut writer = Writer::open(&log).unwrap();
    writer.append("out", "one").unwrap();
    let mut reader = Follower::open(&log, |log| Reader::open(log, 10)).await.unwrap();
    assert_eq!(texts(&reader.next().await.unwrap()), ["one"]);
    let waits = tokio::time::timeout(std::time::Duration::ZERO, reader.next());
    assert!(waits.await.is_err(), "there was a line");
    fs::remove_dir_all(&log).unwrap();
    writer.append("out", "two").unwrap();
    assert_eq!(texts(&reader.next().await.unwrap()), ["two"]);
}

#[test]
fn what_belongs_to_a_run_is_known_by_position() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(folder.path());
    let of_run = |count| {
        let run = Position::of_run(folder.path()).unwrap();
        all(&mut Reader::open_since(folder.path(), count, run).unwrap()).len()
    };
    assert_eq!(Position::of_run(folder.path()), None);
    Position::begin_run(folder.path()).unwrap();
    assert_eq!(of_run(10), 0);
    writer.append("out", "a\nb").unwrap();
    assert_eq!(of_run(10), 2);
    Position::begin_run(folder.path()).unwrap();
    assert_eq!(of_run(10), 0);
    writer.append("out", "c\nd\ne").unwrap();
    assert_eq!((of_run(10), of_run(2)), (3, 2));
    // Across a rotation, and when the file of its beginning is gone.
    fs::rename(folder.path().join(CURRENT), folder.path().join(OLDER)).unwrap();
    writer.append("out", "f\ng").unwrap();
    assert_eq!((of_run(10), of_run(4), of_run(1)), (5, 4, 1));
    fs::rename(folder.path().join(CURRENT), folder.path().join(OLDER)).unwrap();
    writer.append("out", "h").unwrap();
    assert_eq!(of_run(10), 3);
    // Emptied in place: all there is came later.
    Position::begin_run(folder.path()).unwrap();
    fs::File::create(folder.path().join(CURRENT)).unwrap();
    writer.append("out", "").unwrap();
    assert_eq!(of_run(1), 1);
}

#[test]
fn a_fifo_in_the_place_of_a_mark_is_no_mark_and_hangs_nobody() {
    let folder = tempfile::tempdir().unwrap();
    Position::begin_run(folder.path()).unwrap();
    Position::note_ready(folder.path()).unwrap();
    assert!(Position::of_run(folder.path()).is_some() && Position::was_ready(folder.path()));
    for mark in ["run", "ready", "run.new", "ready.new"] {
        let path = folder.path().join(mark);
        let _ = fs::remove_file(&path);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    }
    assert!(Position::of_run(folder.path()).is_none() && !Position::was_ready(folder.path()));
    assert!(Position::note_ready(folder.path()).is_err());
    // The next run has marks of its own.
    Position::begin_run(folder.path()).unwrap();
    Position::note_ready(folder.path()).unwrap();
    assert!(Position::of_run(folder.path()).is_some() && Position::was_ready(folder.path()));
}
