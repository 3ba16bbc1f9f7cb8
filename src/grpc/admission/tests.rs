use super::*;
use tonic_types::StatusExt;

const RESOLVE: &str = "/cells.v1.CellDirectory/Resolve";
const PIN: &str = "/cells.v1.CellDirectory/PinPlacement";
const LIST: &str = "/cells.v1.CellDirectory/ListPlacements";
const HEALTH: &str = "/grpc.health.v1.Health/Check";

fn admission(max_in_flight: u32) -> Admission {
    Admission::new(AdmissionSettings {
        max_queue_delay: Duration::from_millis(20),
        max_in_flight,
        max_refusal_hold: Duration::from_secs(1),
        max_header_bytes: 1024,
    })
}

/// A service that counts and never answers, behind admission.
#[derive(Clone, Default)]
struct Hanging(Arc<AtomicU32>);

impl Service<Request<()>> for Hanging {
    type Response = Response<Body>;
    type Error = std::convert::Infallible;
    type Future = Never;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        self.0.fetch_add(1, Ordering::Relaxed);
        std::future::pending()
    }
}

fn request(path: &str) -> Request<()> {
    Request::post(path).body(()).unwrap()
}

type Never = std::future::Pending<Result<Response<Body>, std::convert::Infallible>>;
type UnderWay = Pin<Box<AdmissionFuture<Never>>>;

/// Calls, polls once, and keeps what is not answered.
fn begin(service: &mut Admitted<Hanging>, path: &str) -> Result<UnderWay, Status> {
    let mut call = Box::pin(service.call(request(path)));
    let mut cx = Context::from_waker(std::task::Waker::noop());
    match call.as_mut().poll(&mut cx) {
        Poll::Pending => Ok(call),
        Poll::Ready(answer) => Err(Status::from_header_map(answer.unwrap().headers()).unwrap()),
    }
}

#[track_caller]
fn overloaded(status: &Status) {
    let details = status.get_error_details();
    assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    assert_eq!(details.error_info().unwrap().reason, "OVERLOADED");
    let after = details.retry_info().unwrap().retry_delay.unwrap();
    assert!((SHORTEST_RETRY..=LONGEST_RETRY).contains(&after), "{after:?}");
}

#[test]
fn every_method_has_the_class_that_is_documented() {
    for (path, expected) in [
        (RESOLVE, Some(Class::Critical)),
        ("/cells.v1.CellDirectory/BatchResolve", Some(Class::Critical)),
        ("/cells.v1.CellDirectory/GetPlacement", Some(Class::Normal)),
        (PIN, Some(Class::Normal)),
        ("/cells.v1.CellDirectory/DeletePlacement", Some(Class::Normal)),
        ("/cells.v1.CellDirectory/ImportPlacements", Some(Class::Normal)),
        (LIST, Some(Class::Low)),
        ("/cells.v1.CellDirectory/GetPlacementHistory", Some(Class::Low)),
        ("/cells.v1.CellAdmin/CreateCell", Some(Class::Normal)),
        ("/cells.v1.CellAdmin/UpdateCell", Some(Class::Normal)),
        ("/cells.v1.CellAdmin/DeleteCell", Some(Class::Normal)),
        ("/cells.v1.CellAdmin/GetCell", Some(Class::Low)),
        ("/cells.v1.CellAdmin/ListCells", Some(Class::Low)),
        ("/cells.v1.CellRecovery/GetRecoveryStatus", Some(Class::Low)),
        ("/cells.v1.CellRecovery/ListBackups", Some(Class::Low)),
        ("/cells.v1.CellRecovery/GetRecoveryDrill", Some(Class::Low)),
        ("/cells.v1.CellRecovery/ListRecoveryDrills", Some(Class::Low)),
        ("/cells.v1.CellRecovery/BackUpCell", Some(Class::Normal)),
        ("/cells.v1.CellRecovery/RestoreCell", Some(Class::Normal)),
        ("/cells.v1.CellRecovery/StartRecoveryDrill", Some(Class::Normal)),
        ("/cells.v1.MigrationService/GetMigration", Some(Class::Low)),
        ("/cells.v1.MigrationService/ListMigrations", Some(Class::Low)),
        ("/cells.v1.MigrationService/WatchMigration", Some(Class::Low)),
        ("/cells.v1.MigrationService/VerifyTenant", Some(Class::Low)),
        ("/cells.v1.MigrationService/GetGuardCoverage", Some(Class::Low)),
        ("/cells.v1.MigrationService/PlanDrain", Some(Class::Low)),
        ("/cells.v1.MigrationService/PlanRebalance", Some(Class::Low)),
        ("/cells.v1.MigrationService/GetBulk", Some(Class::Low)),
        ("/cells.v1.MigrationService/ListBulks", Some(Class::Low)),
        ("/cells.v1.MigrationService/StartDrain", Some(Class::Normal)),
        ("/cells.v1.MigrationService/StartRebalance", Some(Class::Normal)),
        ("/cells.v1.MigrationService/PauseBulk", Some(Class::Normal)),
        ("/cells.v1.MigrationService/ResumeBulk", Some(Class::Normal)),
        ("/cells.v1.MigrationService/CancelBulk", Some(Class::Normal)),
        ("/cells.v1.MigrationService/StartMigration", Some(Class::Normal)),
        ("/cells.v1.MigrationService/PauseMigration", Some(Class::Normal)),
        ("/cells.v1.MigrationService/ResumeMigration", Some(Class::Normal)),
        ("/cells.v1.MigrationService/CancelMigration", Some(Class::Normal)),
        ("/cells.v1.MigrationService/ReverseMigration", Some(Class::Normal)),
        ("/cells.v1.MigrationService/CompleteMigration", Some(Class::Normal)),
        ("/cells.v1.MigrationService/RetryMigration", Some(Class::Normal)),
        ("/cells.v1.CellData/Query", Some(Class::Normal)),
        ("/cells.v1.CellData/ExportTenant", Some(Class::Low)),
        ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Some(Class::Low)),
        (HEALTH, None),
        ("/grpc.health.v1.Health/Watch", None),
        ("/cells.v9.Unknown/Method", Some(Class::Normal)),
    ] {
        assert_eq!(class(path), expected, "{path}");
    }
    // A method that is added gets its class on purpose.
    assert_eq!(
        crate::grpc::methods().len(),
        2 + 10 + 16 + 6 + 1 + 7 + 12 + 9,
        "decide on the class of what is new"
    );
}

#[test]
fn places_are_shared_by_all_and_the_least_important_class_runs_out_first() {
    let admission = admission(8);
    let mut services: Vec<_> =
        (0..3).map(|_| AdmissionLayer(admission.clone()).layer(Hanging::default())).collect();
    let mut under_way = Vec::new();
    // Each call over another connection.
    let mut fill = |path: &str, under_way: &mut Vec<_>| {
        for at in 0..100 {
            match begin(&mut services[at % 3], path) {
                Ok(call) => under_way.push(call),
                Err(status) => return overloaded(&status),
            }
        }
    };
    fill(LIST, &mut under_way);
    assert_eq!(under_way.len(), 4);
    fill(PIN, &mut under_way);
    assert_eq!(under_way.len(), 6);
    fill(LIST, &mut under_way);
    assert_eq!(under_way.len(), 6);
    // A Resolve is let in: it may be in memory.
    let before = under_way.len();
    fill(RESOLVE, &mut under_way);
    assert_eq!(under_way.len(), before + 100);
    assert!(!admission.slots().full(Class::Critical));
    let late = [admission.slots().take_anyway(), admission.slots().take_anyway()];
    assert!(admission.slots().full(Class::Critical));
    drop(late);
    fill(HEALTH, &mut under_way);
    assert_eq!(under_way.len(), before + 200);
    // What is given up gives its place back.
    under_way.clear();
    assert_eq!(admission.slots().taken(), 0);
    fill(LIST, &mut under_way);
    assert_eq!(under_way.len(), 4);
}

#[test]
fn who_finds_too_many_waiting_is_refused_and_not_begun() {
    let admission = admission(1_000_000);
    admission.follow(&Verdict { bounds: [2, 4, 8], hold: Duration::ZERO });
    let inner = Hanging::default();
    let mut service = AdmissionLayer(admission.clone()).layer(inner.clone());
    let mut waiting = Vec::new();
    for (path, due) in [(LIST, 2), (PIN, 4), (RESOLVE, 8), (HEALTH, 8)] {
        // Called and not polled: these wait.
        for _ in 0..100 {
            let call = service.call(request(path));
            if matches!(call, AdmissionFuture::Taken { .. }) {
                waiting.push(call);
            }
        }
        assert_eq!(waiting.len(), due, "{path}");
    }
    assert_eq!(inner.0.load(Ordering::Relaxed), 8 + 100);
    let refused: Vec<_> = (0..100).filter_map(|_| begin(&mut service, RESOLVE).err()).collect();
    assert_eq!(refused.len(), 100);
    refused.iter().for_each(overloaded);
    let delays: std::collections::BTreeSet<_> =
        refused.iter().filter_map(|s| s.get_details_retry_info()?.retry_delay).collect();
    assert!(delays.len() > 4, "no jitter: {delays:?}");
    // One that was polled does not wait any more, nor one that was given up.
    let mut cx = Context::from_waker(std::task::Waker::noop());
    let mut polled = Box::pin(waiting.remove(7));
    assert!(polled.as_mut().poll(&mut cx).is_pending());
    waiting.pop();
    let begun = [begin(&mut service, RESOLVE), begin(&mut service, RESOLVE)];
    assert!(begun.iter().all(Result::is_ok));
    drop((polled, begun, waiting));
    assert_eq!(admission.0.waiting.load(Ordering::Relaxed), 0);
}

#[test]
fn the_mean_of_waits_is_taken_once() {
    let waits = Waits::default();
    for ms in [1, 2, 3] {
        waits.add(Duration::from_millis(ms));
    }
    assert_eq!(waits.take(), (3, Duration::from_millis(2)));
    assert_eq!(waits.take(), (0, Duration::ZERO));
    (0..1000).for_each(|_| waits.add(Duration::MAX));
    assert_eq!(waits.take(), (1000, Duration::from_secs(1)));
}

#[tokio::test(start_paused = true)]
async fn refusals_are_held_as_long_as_the_caller_waits_and_not_too_many() {
    let admission = admission(100);
    let second = Duration::from_secs(1);
    admission.follow(&Verdict { bounds: [0; CLASSES], hold: second });
    let mut service = AdmissionLayer(admission.clone()).layer(Hanging::default());
    let began = tokio::time::Instant::now();
    let answer = service.call(request(RESOLVE)).await.unwrap();
    overloaded(&Status::from_header_map(answer.headers()).unwrap());
    assert!(began.elapsed() >= second * 3 / 4, "{:?}", began.elapsed());

    let mut hurried = request(RESOLVE);
    hurried.extensions_mut().insert(Deadline(Instant::now() + Duration::from_millis(100)));
    let began = tokio::time::Instant::now();
    service.call(hurried).await.unwrap();
    assert!(began.elapsed() <= Duration::from_millis(60), "{:?}", began.elapsed());

    let held: Vec<_> = (0..MAX_HELD).map(|_| service.call(request(LIST))).collect();
    assert!(begin(&mut service, LIST).is_err(), "sent at once");
    drop(held);
    assert_eq!(admission.0.held.load(Ordering::Relaxed), 0);
    assert!(begin(&mut service, LIST).is_ok(), "held");
}

#[test]
fn large_headers_are_refused_with_a_reason() {
    let mut service = AdmissionLayer(admission(8)).layer(Hanging::default());
    let mut large = request(HEALTH);
    large.headers_mut().insert("x", "y".repeat(1024).parse().unwrap());
    let mut call = Box::pin(service.call(large));
    let answer = call.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop()));
    let Poll::Ready(Ok(answer)) = answer else { panic!("not answered") };
    let status = Status::from_header_map(answer.headers()).unwrap();
    assert_eq!(status.get_details_error_info().unwrap().reason, "HEADERS_TOO_LARGE");
}

/// The signal: calls that wait for a processor are seen, without any limit on their number.
#[tokio::test]
async fn the_time_to_the_first_poll_is_measured() {
    let admission = admission(8);
    let mut service = AdmissionLayer(admission.clone()).layer(Hanging::default());
    let mut call = Box::pin(service.call(request(RESOLVE)));
    std::thread::sleep(Duration::from_millis(30));
    for _ in 0..3 {
        assert!(futures::poll!(&mut call).is_pending());
    }
    let (count, mean) = admission.0.waits.take();
    assert_eq!(count, 1, "once");
    assert!(mean >= Duration::from_millis(30), "{mean:?}");
}
