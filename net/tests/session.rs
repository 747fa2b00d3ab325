#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

//! Two peers over an in-memory pipe: the driver, the handle and the service together.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use quilt_net::{BoxFuture, ConnectError, Handle, Inbound, NoService, Service};
use quilt_protocol::codec::{FRAME_MAX, LENGTH_BYTES, find_frame, put_frame, read_frame};
use quilt_protocol::message::{Address, Delivered, Identity, Refusal};
use quilt_protocol::session::{Closed, ITEM_MAX};
use quilt_protocol::version::SPOKEN;
use quilt_protocol::{Encoding, FleetId, Hello, Limits, Message, Outcome, RequestHead, Terms, Welcome};
use smol_str::SmolStr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

fn hello() -> Hello {
    Hello {
        versions: SPOKEN,
        software: "test".into(),
        fleet: None,
        identity: Identity::Tool("tool".parse().unwrap()),
        features: vec![],
        extensions: Default::default(),
    }
}

/// Answers `echo`, `panic`, `hang`, `drop`, `count` (a stream), `boast` (a stream with an item that is too long), and `slow` (after a second).
struct TestService {
    refuse: bool,
    hanging: Arc<AtomicUsize>,
    closed: mpsc::UnboundedSender<Closed>,
}

impl Service for TestService {
    fn hello(&self, hello: Hello) -> Result<(Welcome, SmolStr), Refusal> {
        if self.refuse {
            return Err(Refusal {
                code: "quarantined".into(),
                text: "go away".into(),
                versions: SPOKEN,
                extensions: Default::default(),
            });
        }
        let Identity::Tool(name) = hello.identity else { panic!("a station") };
        let welcome = Welcome {
            version: 0,
            software: "test".into(),
            fleet: FleetId::random(),
            assigned: Some(name),
            heartbeat_ms: 5000,
            features: vec![],
            extensions: Default::default(),
        };
        Ok((welcome, "tool:test".into()))
    }

    fn request(&self, inbound: Inbound) -> BoxFuture<'static, ()> {
        let Inbound { head, body, responder } = inbound;
        let hanging = self.hanging.clone();
        Box::pin(async move {
            match head.terms.command.as_str() {
                "echo" => responder.respond(Outcome::Reply, head.terms.encoding, body.keep()),
                "panic" => panic!("as asked"),
                "drop" => drop(responder),
                "hang" => {
                    struct Count(Arc<AtomicUsize>);
                    impl Drop for Count {
                        fn drop(&mut self) {
                            self.0.fetch_sub(1, Ordering::SeqCst);
                        }
                    }
                    hanging.fetch_add(1, Ordering::SeqCst);
                    let _count = Count(hanging);
                    std::future::pending::<()>().await;
                }
                "slow" => {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    responder.respond(Outcome::Reply, head.terms.encoding, body.keep());
                }
                "count" => {
                    let mut items = responder.items();
                    for number in 0..100u32 {
                        if items.send(Bytes::from(number.to_string())).await.is_err() {
                            return;
                        }
                    }
                    responder.respond(Outcome::Reply, Encoding::Json, Bytes::from_static(b"counted"));
                }
                "boast" => {
                    let mut items = responder.items();
                    items.send(Bytes::from_static(b"short")).await.unwrap();
                    assert!(items.send(vec![0; ITEM_MAX + 1].into()).await.is_err());
                    responder.respond(Outcome::Reply, Encoding::Json, Bytes::from_static(b"all is sent"));
                }
                other => responder.fail(Outcome::NoCommand, other),
            }
        })
    }

    fn closed(&self, why: &Closed) {
        let _ = self.closed.send(why.clone());
    }
}

struct World {
    asker: Handle,
    server: tokio::task::JoinHandle<Closed>,
    hanging: Arc<AtomicUsize>,
    closed: mpsc::UnboundedReceiver<Closed>,
}

async fn world() -> World {
    let (near, far) = tokio::io::duplex(256 * 1024);
    let (sender, closed) = mpsc::unbounded_channel();
    let hanging = Arc::new(AtomicUsize::new(0));
    let service = Arc::new(TestService { refuse: false, hanging: hanging.clone(), closed: sender });
    let server = tokio::spawn(quilt_net::accept(far, Limits::default(), Duration::ZERO, |_| service));
    let (asker, _) = quilt_net::connect(near, hello(), Arc::new(NoService)).await.unwrap();
    World { asker, server, hanging, closed }
}

fn head(command: &str) -> RequestHead {
    RequestHead::new(Terms::new(Address::Manager, command))
}

#[tokio::test(start_paused = true)]
async fn each_request_ends_in_the_outcome_its_handler_chose() {
    let world = world().await;
    let ask = |command: &str| world.asker.request(&head(command), Bytes::from_static(b"body"));
    let answer = ask("echo").await;
    assert_eq!((answer.outcome, &answer.body[..]), (Outcome::Reply, &b"body"[..]));
    assert_eq!(ask("panic").await.outcome, Outcome::Panicked);
    assert_eq!(ask("drop").await.outcome, Outcome::Panicked);
    assert_eq!(ask("nonsense").await.outcome, Outcome::NoCommand);
    assert_eq!(ask("slow").await.outcome, Outcome::Reply);
    assert_eq!(ask("hang").await.outcome, Outcome::TimedOut);
    assert_eq!(world.hanging.load(Ordering::SeqCst), 0, "the handler outlived its request");
}

#[tokio::test(start_paused = true)]
async fn dropping_a_request_stops_its_handler_and_frees_its_place() {
    let world = world().await;
    for _ in 0..3000 {
        let pending = world.asker.request(&head("hang"), Bytes::new());
        drop(pending);
    }
    assert_eq!(world.asker.request(&head("echo"), Bytes::new()).await.outcome, Outcome::Reply);
    assert_eq!(world.hanging.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn at_most_1024_requests_are_in_flight() {
    let world = world().await;
    let hanging: Vec<_> = (0..1024).map(|_| world.asker.request(&head("hang"), Bytes::new())).collect();
    assert_eq!(world.asker.request(&head("echo"), Bytes::new()).await.outcome, Outcome::Overloaded);
    drop(hanging);
    assert_eq!(world.asker.request(&head("echo"), Bytes::new()).await.outcome, Outcome::Reply);
}

#[tokio::test(start_paused = true)]
async fn whatever_reaches_a_limit_is_told_which() {
    let world = world().await;
    let mut calls: Vec<_> = (0..=1024).map(|_| world.asker.request(&head("hang"), Bytes::new())).collect();
    let over = calls.pop().unwrap().await;
    let text = "not sent: a connection bears 1024 requests at once and 128 MiB of bodies under way";
    assert_eq!((over.outcome, over.text().as_str()), (Outcome::Overloaded, text));
    drop(calls);
    let long = world.asker.request(&head(&"x".repeat(300)), Bytes::new()).await;
    assert_eq!(long.outcome, Outcome::Refused);
    assert!(long.text().contains("64 MiB") && long.text().contains("256 bytes"), "{}", long.text());
    let mut items = world.asker.stream(head("boast"), Bytes::new(), 4);
    assert_eq!(items.next().await.unwrap(), "short");
    assert!(items.next().await.is_none());
    let end = items.end().await;
    assert_eq!(end.outcome, Outcome::Overloaded, "a stream that lacks an item has not ended well");
    assert!(end.text().contains("an item 1 MiB"), "{}", end.text());
}

#[tokio::test(start_paused = true)]
async fn a_stream_never_runs_ahead_of_its_reader() {
    let world = world().await;
    let mut items = world.asker.stream(head("count"), Bytes::new(), 4);
    for number in 0..100u32 {
        assert_eq!(items.next().await.unwrap(), number.to_string());
    }
    assert_eq!(items.next().await, None);
    assert_eq!(items.end().await.body, "counted");

    let mut unread = world.asker.stream(head("count"), Bytes::new(), 4);
    assert!(unread.next().await.is_some());
    drop(unread);
    assert_eq!(world.asker.request(&head("echo"), Bytes::new()).await.outcome, Outcome::Reply);
}

#[tokio::test(start_paused = true)]
async fn a_large_body_arrives_whole_beside_small_ones() {
    let world = world().await;
    let large = Bytes::from((0..16 << 20).map(|i: u32| (i % 251) as u8).collect::<Vec<_>>());
    let echoed = world.asker.request(&head("echo"), large.clone());
    let mut echoed = Box::pin(echoed);
    // On a task of its own: the runtime polls the test's own future only once in a while.
    let asking = tokio::spawn(async move {
        let mut small = 0;
        loop {
            tokio::select! {
                biased;
                answer = &mut echoed => return (answer, small),
                answer = world.asker.request(&head("echo"), Bytes::from_static(b"small")) => {
                    assert_eq!(answer.body, "small");
                    small += 1;
                }
            }
        }
    });
    let (answer, small) = asking.await.unwrap();
    assert!(answer.body == large, "the body was changed on the way");
    assert!(small > 20, "only {small} small requests got past the large one");
}

#[tokio::test(start_paused = true)]
async fn a_goodbye_is_told_apart_from_a_crash() {
    let mut first = world().await;
    first.asker.goodbye("done here");
    assert_eq!(first.closed.recv().await, Some(Closed::Goodbye("done here".into())));
    assert_eq!(first.asker.closed().await, Closed::ByUs);

    let mut second = world().await;
    let pending = second.asker.request(&head("hang"), Bytes::new());
    while second.hanging.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    second.server.abort();
    assert_eq!(pending.await.outcome, Outcome::PeerLost(Delivered::Unknown));
    assert!(matches!(second.asker.closed().await, Closed::Broken(_)));
    assert_eq!(
        second.asker.request(&head("echo"), Bytes::new()).await.outcome,
        Outcome::PeerLost(Delivered::No),
        "nothing is sent on a closed session"
    );
    drop(second.closed.recv());
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_nobody_uses_ends_once_what_was_asked_over_it_has() {
    let mut world = world().await;
    let mut items = world.asker.stream(head("count"), Bytes::new(), 4);
    let slow = world.asker.request(&head("slow"), Bytes::from_static(b"x"));
    world.asker.leave_when_idle();
    assert_eq!(slow.await.body, "x");
    for number in 0..100u32 {
        assert_eq!(items.next().await.unwrap(), number.to_string());
    }
    assert!(!world.asker.is_closed(), "a stream is under way");
    assert_eq!(items.end().await.body, "counted");
    assert!(matches!(world.closed.recv().await, Some(Closed::Goodbye(_))));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_never_greets_or_speaks_something_else_is_cut() {
    for garbage in [&b""[..], b"GET / HTTP/1.1\r\n\r\n", &[0xff; 64], &[0; 8]] {
        let (mut near, far) = tokio::io::duplex(1024);
        let (sender, _closed) = mpsc::unbounded_channel();
        let service = Arc::new(TestService { refuse: false, hanging: Arc::default(), closed: sender });
        let server = tokio::spawn(quilt_net::accept(far, Limits::default(), Duration::ZERO, |_| service));
        near.write_all(garbage).await.unwrap();
        let why = server.await.unwrap();
        assert!(matches!(why, Closed::Violation(_)), "{garbage:?}: {why}");
        let mut rest = Vec::new();
        near.read_to_end(&mut rest).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_peer_is_told_why() {
    let (near, far) = tokio::io::duplex(1024);
    let (sender, _closed) = mpsc::unbounded_channel();
    let service = Arc::new(TestService { refuse: true, hanging: Arc::default(), closed: sender });
    tokio::spawn(quilt_net::accept(far, Limits::default(), Duration::ZERO, |_| service));
    match quilt_net::connect(near, hello(), Arc::new(NoService)).await {
        Err(ConnectError::Refused(refusal)) => assert_eq!(refusal.text, "go away"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_stops_reading_is_cut_and_costs_bounded_memory() {
    let (mut near, far) = tokio::io::duplex(4096);
    let (sender, _closed) = mpsc::unbounded_channel();
    let service = Arc::new(TestService { refuse: false, hanging: Arc::default(), closed: sender });
    let server = tokio::spawn(quilt_net::accept(far, Limits::default(), Duration::ZERO, |_| service));
    let mut bytes = Vec::new();
    put_frame(&mut bytes, &Message::Hello(Box::new(hello())), &[]);
    near.write_all(&bytes).await.unwrap();
    // Asks without end and never reads: the echoes pile up until the limit.
    let asking = async {
        for number in 0.. {
            let message = Message::request(number, &head("echo"), 4000);
            bytes.clear();
            put_frame(&mut bytes, &message, &[7; 4000]);
            if near.write_all(&bytes).await.is_err() {
                return number;
            }
        }
        unreachable!()
    };
    let (sent, why) = tokio::join!(asking, server);
    assert!(matches!(why.unwrap(), Closed::Violation(_) | Closed::Broken(_)));
    assert!(sent < 1_000_000);
}

#[tokio::test(start_paused = true)]
async fn what_arrives_while_a_burst_is_handed_out_is_read_as_well() {
    let (mut near, far) = tokio::io::duplex(1 << 20);
    let (sender, _closed) = mpsc::unbounded_channel();
    let service = Arc::new(TestService { refuse: false, hanging: Arc::default(), closed: sender });
    tokio::spawn(quilt_net::accept(far, Limits::default(), Duration::ZERO, |_| service));
    let mut bytes = Vec::new();
    put_frame(&mut bytes, &Message::Hello(Box::new(hello())), &[]);
    near.write_all(&bytes).await.unwrap();
    let mut input = Vec::new();
    near.read_buf(&mut input).await.unwrap();
    bytes.clear();
    // More than one turn hands out; then one more whenever something was answered.
    let mut asked = 0..;
    asked.by_ref().take(20).for_each(|number| put_frame(&mut bytes, &Message::request(number, &head("echo"), 0), &[]));
    near.write_all(&bytes).await.unwrap();
    let mut answered = 0;
    // In a task, since tasks take turns with the driver and this one does not.
    let asking = async move {
        while answered < 200 {
            assert_ne!(near.read_buf(&mut input).await.unwrap(), 0, "after {answered} answers nothing comes any more");
            while let Some(frame) = find_frame(&input, FRAME_MAX).unwrap() {
                let length = frame.len();
                answered += usize::from(matches!(read_frame(frame, false), Ok((Message::Response { .. }, _))));
                input.drain(..LENGTH_BYTES + length);
            }
            bytes.clear();
            put_frame(&mut bytes, &Message::request(asked.next().unwrap(), &head("echo"), 0), &[]);
            near.write_all(&bytes).await.unwrap();
        }
    };
    let began = tokio::time::Instant::now();
    tokio::spawn(asking).await.unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO, "something lay there until a timer went off");
}

/// Tells where in memory the bodies lie that it is asked with.
struct Where(mpsc::UnboundedSender<usize>);

impl Service for Where {
    fn hello(&self, hello: Hello) -> Result<(Welcome, SmolStr), Refusal> {
        let closed = mpsc::unbounded_channel().0;
        TestService { refuse: false, hanging: Arc::default(), closed }.hello(hello)
    }

    fn request(&self, inbound: Inbound) -> BoxFuture<'static, ()> {
        let _ = self.0.send(inbound.body.as_ptr().addr());
        quilt_net::done()
    }

    fn closed(&self, _: &Closed) {}
}

#[tokio::test(start_paused = true)]
async fn short_bodies_lie_where_they_were_read() {
    let (mut near, far) = tokio::io::duplex(1 << 20);
    let (places, mut found) = mpsc::unbounded_channel();
    tokio::spawn(quilt_net::accept(far, Limits::default(), Duration::ZERO, |_| Arc::new(Where(places))));
    let mut bytes = Vec::new();
    put_frame(&mut bytes, &Message::Hello(Box::new(hello())), &[]);
    near.write_all(&bytes).await.unwrap();
    near.read_buf(&mut Vec::new()).await.unwrap();
    bytes.clear();
    for number in 0..8 {
        put_frame(&mut bytes, &Message::request(number, &head("x"), 2000), &[7; 2000]);
    }
    near.write_all(&bytes).await.unwrap();
    let mut before = found.recv().await.unwrap();
    for _ in 1..8 {
        let next = found.recv().await.unwrap();
        assert_eq!(next - before, bytes.len() / 8, "as far from each other as they were on the wire");
        before = next;
    }
}

#[tokio::test]
async fn a_side_that_looks_before_it_sleeps_loses_nothing_of_what_comes_later() {
    let (near, far) = tokio::io::duplex(1 << 20);
    let (sender, mut closed) = mpsc::unbounded_channel();
    let service = Arc::new(TestService { refuse: false, hanging: Arc::default(), closed: sender });
    let (handles, mut handle) = mpsc::unbounded_channel();
    let accepting = quilt_net::accept(far, Limits::default(), Duration::from_millis(1), move |handle| {
        handles.send(handle).unwrap();
        service
    });
    tokio::spawn(accepting);
    let asked = TestService { refuse: false, hanging: Arc::default(), closed: mpsc::unbounded_channel().0 };
    let (asker, _) = quilt_net::connect(near, hello(), Arc::new(asked)).await.unwrap();
    let accepted = handle.recv().await.unwrap();
    for pause in [0, 0, 0, 5, 0, 0, 5] {
        // Longer than it looks: what comes next has to wake it up.
        tokio::time::sleep(Duration::from_millis(pause)).await;
        assert_eq!(asker.request(&head("echo"), Bytes::from_static(b"there")).await.outcome, Outcome::Reply);
        assert_eq!(accepted.request(&head("echo"), Bytes::from_static(b"back")).await.outcome, Outcome::Reply);
    }
    asker.goodbye("done");
    assert!(matches!(closed.recv().await, Some(Closed::Goodbye(_))));
}

/// Passes everything on to another session.
struct Relay(Handle);

impl Service for Relay {
    fn hello(&self, hello: Hello) -> Result<(Welcome, SmolStr), Refusal> {
        let closed = mpsc::unbounded_channel().0;
        TestService { refuse: false, hanging: Arc::default(), closed }.hello(hello)
    }

    fn request(&self, inbound: Inbound) -> BoxFuture<'static, ()> {
        let Inbound { head, body, responder } = inbound;
        self.0.relay(&head, body, responder);
        Box::pin(async {})
    }

    fn closed(&self, _: &Closed) {}
}

/// Somebody who asks a [`Relay`] to the world's server.
async fn asker_through_a_relay(world: &World) -> Handle {
    let (near, far) = tokio::io::duplex(256 * 1024);
    let relay = Arc::new(Relay(world.asker.clone()));
    tokio::spawn(quilt_net::accept(far, Limits::default(), Duration::ZERO, |_| relay));
    quilt_net::connect(near, hello(), Arc::new(NoService)).await.unwrap().0
}

#[tokio::test(start_paused = true)]
async fn a_relayed_request_ends_as_it_does_where_it_is_relayed_to() {
    let world = world().await;
    let asker = asker_through_a_relay(&world).await;
    let ask = |command: &str| asker.request(&head(command), Bytes::from_static(b"body"));
    let answer = ask("echo").await;
    assert_eq!((answer.outcome, &answer.body[..]), (Outcome::Reply, &b"body"[..]));
    for (command, outcome) in [("panic", Outcome::Panicked), ("drop", Outcome::Panicked), ("slow", Outcome::Reply)] {
        assert_eq!(ask(command).await.outcome, outcome, "{command}");
    }
    // Whoever gives up in front is given up behind.
    let hanging = ask("hang");
    let until = async |count| {
        while world.hanging.load(Ordering::SeqCst) != count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    until(1).await;
    drop(hanging);
    until(0).await;
    // As is one whose connection ends.
    let hanging = ask("hang");
    until(1).await;
    asker.goodbye("enough");
    assert_eq!(hanging.await.outcome, Outcome::PeerLost(Delivered::Unknown));
    until(0).await;
    // What is lost behind is lost in front, and what comes after that was never delivered.
    let asker = asker_through_a_relay(&world).await;
    let hanging = asker.request(&head("hang"), Bytes::new());
    until(1).await;
    world.server.abort();
    assert_eq!(hanging.await.outcome, Outcome::PeerLost(Delivered::Unknown));
    let late = asker.request(&head("echo"), Bytes::new()).await;
    assert_eq!(late.outcome, Outcome::PeerLost(Delivered::No));
}
