//! Graphs: work that was captured once and runs whenever it is asked to.

use crate::{KERNELS, add, assert_refused, download, kernel, upload};
use engine::driver::{Driver, Graph, LaunchConfig, Params, Stream};

/// Captures what `work` queues on a stream of its own.
#[track_caller]
fn capture(driver: &dyn Driver, work: impl FnOnce(Stream)) -> Graph {
    let stream = driver.create_stream().unwrap();
    driver.begin_capture(stream).unwrap();
    work(stream);
    let graph = driver.end_capture(stream).unwrap();
    driver.destroy_stream(stream).unwrap();
    graph
}

pub fn captured_work_runs_when_its_graph_does(driver: &dyn Driver) {
    let (data, other, step) = (upload(driver, &[0; 8]), upload(driver, &[0; 8]), kernel(driver, "step"));
    let stream = driver.create_stream().unwrap();
    driver.begin_capture(stream).unwrap();
    driver.fill(stream, data, 5, 8).unwrap();
    add(driver, stream, step, data, 8, 2);
    driver.copy(stream, other + 16, data, 16).unwrap();
    add(driver, stream, step, other, 8, 100);
    let graph = driver.end_capture(stream).unwrap();
    assert_eq!(download(driver, stream, data, 8), [0; 8]);
    driver.launch_graph(graph, stream).unwrap();
    assert_eq!(download(driver, stream, data, 8), [7; 8]);
    assert_eq!(download(driver, stream, other, 8), [100, 100, 100, 100, 107, 107, 107, 107]);
    // The stream works as before.
    add(driver, stream, step, data, 8, 1);
    assert_eq!(download(driver, stream, data, 8), [8; 8]);
    driver.destroy_graph(graph).unwrap();
}

pub fn a_graph_writes_the_bytes_of_the_capture(driver: &dyn Driver) {
    let data = upload(driver, &[0; 4096]);
    let mut source = vec![3u32; 4096];
    let graph = capture(driver, |stream| driver.write(stream, data, bytemuck::cast_slice(&source)).unwrap());
    source.fill(4);
    drop(source);
    for _ in 0..2 {
        driver.fill(Stream::DEFAULT, data, 0, 4096).unwrap();
        driver.synchronize(Stream::DEFAULT).unwrap();
        driver.launch_graph(graph, Stream::DEFAULT).unwrap();
        assert_eq!(download(driver, Stream::DEFAULT, data, 4096), [3; 4096]);
    }
    driver.destroy_graph(graph).unwrap();
}

pub fn a_graph_runs_on_any_stream_any_number_of_times(driver: &dyn Driver) {
    let (data, step) = (upload(driver, &[0; 8]), kernel(driver, "step"));
    let graph = capture(driver, |stream| {
        add(driver, stream, step, data, 8, 1);
        add(driver, stream, step, data, 4, 10);
    });
    let streams = [Stream::DEFAULT, driver.create_stream().unwrap()];
    for stream in streams {
        for _ in 0..3 {
            driver.launch_graph(graph, stream).unwrap();
        }
        driver.synchronize(stream).unwrap();
    }
    assert_eq!(download(driver, Stream::DEFAULT, data, 8), [66, 66, 66, 66, 6, 6, 6, 6]);
}

pub fn events_in_a_graph_are_recorded_by_each_replay(driver: &dyn Driver) {
    let (data, step) = (upload(driver, &[0; 8]), kernel(driver, "step"));
    let [before, start, end, after] = [(); 4].map(|()| driver.create_event().unwrap());
    driver.record(before, Stream::DEFAULT).unwrap();
    let graph = capture(driver, |stream| {
        driver.wait(stream, before).unwrap();
        driver.record(start, stream).unwrap();
        add(driver, stream, step, data, 8, 1);
        driver.record(end, stream).unwrap();
    });
    assert_refused(driver.elapsed_seconds(start, end), &[]);
    for _ in 0..2 {
        driver.record(before, Stream::DEFAULT).unwrap();
        driver.launch_graph(graph, Stream::DEFAULT).unwrap();
        driver.record(after, Stream::DEFAULT).unwrap();
        for (from, to) in [(before, start), (start, end), (end, after)] {
            assert!(driver.elapsed_seconds(from, to).unwrap() >= 0.0);
        }
    }
    assert_eq!(download(driver, Stream::DEFAULT, data, 8), [2; 8]);
}

pub fn a_graph_keeps_what_it_uses(driver: &dyn Driver) {
    let data = upload(driver, &[0; 8]);
    let module = driver.load("kernels.ptx", KERNELS).unwrap();
    let step = driver.function(module, "step").unwrap();
    let event = driver.create_event().unwrap();
    let graph = capture(driver, |stream| {
        add(driver, stream, step, data, 8, 1);
        driver.record(event, stream).unwrap();
    });
    driver.unload(module).unwrap();
    driver.destroy_event(event).unwrap();
    for _ in 0..2 {
        driver.launch_graph(graph, Stream::DEFAULT).unwrap();
    }
    assert_eq!(download(driver, Stream::DEFAULT, data, 8), [2; 8]);
    driver.destroy_graph(graph).unwrap();
}

pub fn a_graph_can_be_part_of_another(driver: &dyn Driver) {
    let (data, step) = (upload(driver, &[0; 8]), kernel(driver, "step"));
    let inner = capture(driver, |stream| {
        driver.write(stream, data, bytemuck::cast_slice(&[10u32; 4])).unwrap();
        add(driver, stream, step, data, 8, 1);
    });
    let outer = capture(driver, |stream| {
        driver.launch_graph(inner, stream).unwrap();
        add(driver, stream, step, data, 8, 100);
    });
    assert_eq!(download(driver, Stream::DEFAULT, data, 8), [0; 8]);
    driver.destroy_graph(inner).unwrap();
    for _ in 0..2 {
        driver.launch_graph(outer, Stream::DEFAULT).unwrap();
    }
    assert_eq!(download(driver, Stream::DEFAULT, data, 8), [111, 111, 111, 111, 202, 202, 202, 202]);
}

pub fn a_captured_stream_refuses_to_be_waited_for_and_goes_on(driver: &dyn Driver) {
    let (data, step) = (upload(driver, &[0; 8]), kernel(driver, "step"));
    let graph = capture(driver, |stream| {
        add(driver, stream, step, data, 8, 1);
        assert_refused(driver.synchronize(stream), &["captured"]);
        assert_refused(driver.read(stream, data, &mut [0; 4]), &["captured"]);
        add(driver, stream, step, data, 8, 2);
    });
    driver.launch_graph(graph, Stream::DEFAULT).unwrap();
    assert_eq!(download(driver, Stream::DEFAULT, data, 8), [3; 8]);
    // A launch that no device takes is refused at once, not in a replay.
    let stream = driver.create_stream().unwrap();
    driver.begin_capture(stream).unwrap();
    let params = Params::new().u64(data).u32(1);
    assert_refused(driver.launch(stream, step, LaunchConfig::linear(2048, 2048), &params), &["2048"]);
    // Whether the capture survives that is the driver's business; the stream does.
    let _ = driver.end_capture(stream);
    add(driver, stream, step, data, 8, 1);
    assert_eq!(download(driver, stream, data, 8), [4; 8]);
}

pub fn other_work_goes_on_during_a_capture(driver: &dyn Driver) {
    let (data, step) = (upload(driver, &[0; 8]), kernel(driver, "step"));
    let other = driver.create_stream().unwrap();
    let graph = capture(driver, |stream| {
        add(driver, stream, step, data, 8, 1);
        // Here and in another thread: memory, modules, streams, launches.
        for is_elsewhere in [false, true] {
            let work = || {
                let (fresh, fresh_step) = (upload(driver, &[0; 8]), kernel(driver, "step"));
                add(driver, other, fresh_step, fresh, 8, 5);
                assert_eq!(download(driver, other, fresh, 8), [5; 8]);
                driver.free(fresh).unwrap();
            };
            if is_elsewhere { std::thread::scope(|scope| scope.spawn(work).join().unwrap()) } else { work() }
        }
        std::thread::scope(|scope| scope.spawn(|| add(driver, stream, step, data, 8, 10)).join().unwrap());
    });
    driver.launch_graph(graph, other).unwrap();
    assert_eq!(download(driver, other, data, 8), [11; 8]);
}

pub fn captures_begin_and_end_once(driver: &dyn Driver) {
    let (data, step) = (upload(driver, &[0; 8]), kernel(driver, "step"));
    let stream = driver.create_stream().unwrap();
    assert_refused(driver.end_capture(stream), &["not being captured"]);
    driver.begin_capture(stream).unwrap();
    assert_refused(driver.begin_capture(stream), &["captured"]);
    add(driver, stream, step, data, 8, 1);
    let graph = driver.end_capture(stream).unwrap();
    assert_refused(driver.end_capture(stream), &["not being captured"]);
    driver.launch_graph(graph, stream).unwrap();
    assert_eq!(download(driver, stream, data, 8), [1; 8]);
}
