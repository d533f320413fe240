//! Streams and events: order, waiting, time.

use crate::{add, assert_refused, download, kernel, upload};
use engine::driver::{Driver, LaunchConfig, Params, Stream};

pub fn work_on_a_stream_is_done_in_order(driver: &dyn Driver) {
    let (data, step) = (upload(driver, &[0; 32]), kernel(driver, "step"));
    let stream = driver.create_stream().unwrap();
    for round in 0..10 {
        driver.fill(stream, data, round, 32).unwrap();
        add(driver, stream, step, data, 32, 100);
        driver.copy(stream, data, data + 64, 64).unwrap();
        driver.write(stream, data, &7u32.to_le_bytes()).unwrap();
        add(driver, stream, step, data, 1, 1);
    }
    driver.synchronize(stream).unwrap();
    let mut expected = [109; 32];
    expected[0] = 8;
    assert_eq!(download(driver, stream, data, 32), expected);
    driver.destroy_stream(stream).unwrap();
}

pub fn a_stream_waits_for_an_event_of_another(driver: &dyn Driver) {
    let (data, step) = (upload(driver, &[0; 1024]), kernel(driver, "step"));
    let [first, second] = [(); 2].map(|()| driver.create_stream().unwrap());
    let [there, back] = [(); 2].map(|()| driver.create_event().unwrap());
    for _ in 0..20 {
        add(driver, first, step, data, 1024, 1);
        driver.record(there, first).unwrap();
        driver.wait(second, there).unwrap();
        add(driver, second, step, data, 1024, 2);
        driver.record(back, second).unwrap();
        driver.wait(first, back).unwrap();
    }
    assert_eq!(download(driver, first, data, 1024), [60; 1024]);
    // What was never recorded is not waited for.
    driver.wait(first, driver.create_event().unwrap()).unwrap();
    driver.synchronize(first).unwrap();
}

pub fn events_tell_the_time_between_them(driver: &dyn Driver) {
    let (data, step) = (upload(driver, &[0; 1024]), kernel(driver, "step"));
    let [start, end, later] = [(); 3].map(|()| driver.create_event().unwrap());
    driver.record(start, Stream::DEFAULT).unwrap();
    for _ in 0..10 {
        add(driver, Stream::DEFAULT, step, data, 1024, 1);
    }
    driver.record(end, Stream::DEFAULT).unwrap();
    driver.synchronize(Stream::DEFAULT).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(30));
    driver.record(later, Stream::DEFAULT).unwrap();
    let seconds = |from, to| driver.elapsed_seconds(from, to).unwrap();
    let work = seconds(start, end);
    assert!(work > 0.0 && work < 20.0, "{work}");
    assert!(seconds(end, later) >= 0.03, "{}", seconds(end, later));
    assert!((seconds(start, later) - work - seconds(end, later)).abs() < 1e-4);
    assert!((seconds(later, start) + seconds(start, later)).abs() < 1e-4, "backwards is negative");
    // An event can be recorded again.
    driver.record(start, Stream::DEFAULT).unwrap();
    assert!(seconds(later, start) >= 0.0);
}

pub fn an_event_that_was_never_recorded_has_no_time(driver: &dyn Driver) {
    let [never, recorded] = [(); 2].map(|()| driver.create_event().unwrap());
    driver.record(recorded, Stream::DEFAULT).unwrap();
    assert_refused(driver.elapsed_seconds(never, recorded), &[]);
    assert_refused(driver.elapsed_seconds(recorded, never), &[]);
    driver.synchronize(Stream::DEFAULT).unwrap();
}

pub fn what_was_destroyed_is_refused(driver: &dyn Driver) {
    let (data, step) = (upload(driver, &[0]), kernel(driver, "step"));
    let (stream, event) = (driver.create_stream().unwrap(), driver.create_event().unwrap());
    driver.begin_capture(stream).unwrap();
    let graph = driver.end_capture(stream).unwrap();
    driver.destroy_graph(graph).unwrap();
    assert_refused(driver.launch_graph(graph, stream), &["graph"]);
    assert_refused(driver.destroy_graph(graph), &["graph"]);
    driver.destroy_event(event).unwrap();
    assert_refused(driver.record(event, stream), &["event"]);
    assert_refused(driver.wait(stream, event), &["event"]);
    assert_refused(driver.elapsed_seconds(event, event), &["event"]);
    assert_refused(driver.destroy_event(event), &["event"]);
    driver.destroy_stream(stream).unwrap();
    let params = Params::new().u64(data).u32(1);
    assert_refused(driver.launch(stream, step, LaunchConfig::linear(1, 1), &params), &["stream"]);
    assert_refused(driver.write(stream, data, &[1; 4]), &["stream"]);
    assert_refused(driver.read(stream, data, &mut [1; 4]), &["stream"]);
    assert_refused(driver.synchronize(stream), &["stream"]);
    assert_refused(driver.begin_capture(stream), &["stream"]);
    assert_refused(driver.end_capture(stream), &["stream"]);
    assert_refused(driver.destroy_stream(stream), &["stream"]);
    // New ones are not the old ones.
    let (new_stream, new_event) = (driver.create_stream().unwrap(), driver.create_event().unwrap());
    assert!(new_stream != stream && new_event != event);
    assert_refused(driver.synchronize(stream), &["stream"]);
    assert_eq!(download(driver, new_stream, data, 1), [0]);
}

pub fn the_default_stream_stays(driver: &dyn Driver) {
    let data = upload(driver, &[4]);
    assert_refused(driver.destroy_stream(Stream::DEFAULT), &["default"]);
    assert_refused(driver.begin_capture(Stream::DEFAULT), &["default"]);
    assert_refused(driver.end_capture(Stream::DEFAULT), &[]);
    assert_eq!(download(driver, Stream::DEFAULT, data, 1), [4]);
}
