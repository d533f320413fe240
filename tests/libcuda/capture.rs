//! Graphs: by capture, with several streams, node by node, and what a capture refuses.

use crate::KERNELS;
use crate::driver::{Session, at, code, download, get, launch, ok, upload};

/// Captures that other tests' threads do not disturb.
const THREAD_LOCAL: usize = 1;

fn end_capture(stream: usize) -> usize {
    let mut graph = 0usize;
    ok("cuStreamEndCapture", &[stream, at(&mut graph)]);
    graph
}

fn node_count(graph: usize) -> usize {
    let mut count = 0usize;
    ok("cuGraphGetNodes", &[graph, 0, at(&mut count)]);
    count
}

#[test]
fn a_captured_graph_runs_when_launched_and_not_before() {
    let session = Session::new(KERNELS);
    let step = session.function("step");
    let (data, copy) = (upload(&[0u32; 8]), upload(&[9u32; 8]));
    let stream = get("cuStreamCreate", &[1]);
    ok("cuStreamBeginCapture_v2", &[stream, THREAD_LOCAL]);
    for amount in [1, 10] {
        assert_eq!(launch(step, 1, 8, stream, &[data, amount]), 0);
    }
    ok("cuMemcpyDtoDAsync_v2", &[copy, data, 32, stream]);
    ok("cuMemsetD32Async", &[data, 100, 2, stream]);
    let mut status = 0u32;
    ok("cuStreamIsCapturing", &[stream, at(&mut status)]);
    assert_eq!(status, 1);
    let graph = end_capture(stream);
    assert_eq!(node_count(graph), 4);
    assert_eq!((download::<u32>(data, 1), download::<u32>(copy, 1)), (vec![0], vec![9]));
    let exec = get("cuGraphInstantiateWithFlags", &[graph, 0]);
    ok("cuGraphDestroy", &[graph]);
    for _ in 0..3 {
        ok("cuGraphLaunch", &[exec, stream]);
    }
    ok("cuStreamSynchronize", &[stream]);
    assert_eq!(download::<u32>(copy, 3), [111, 111, 33]);
    assert_eq!(download::<u32>(data, 3), [100, 100, 33]);
    ok("cuGraphExecDestroy", &[exec]);
    assert_eq!(code("cuGraphLaunch", &[exec, stream]), 1);
}

#[test]
fn events_bring_other_streams_into_a_capture_and_back() {
    let session = Session::new(KERNELS);
    let step = session.function("step");
    let data = upload(&[0u32; 8]);
    let (first, second) = (get("cuStreamCreate", &[1]), get("cuStreamCreate", &[1]));
    let (fork, join) = (get("cuEventCreate", &[2]), get("cuEventCreate", &[2]));
    ok("cuStreamBeginCapture_v2", &[first, THREAD_LOCAL]);
    assert_eq!(launch(step, 1, 8, first, &[data, 1]), 0);
    ok("cuEventRecord", &[fork, first]);
    ok("cuStreamWaitEvent", &[second, fork, 0]);
    assert_eq!(launch(step, 1, 4, second, &[data, 2]), 0);
    assert_eq!(launch(step, 1, 4, first, &[data + 16, 4]), 0);
    ok("cuEventRecord", &[join, second]);
    assert_eq!(code("cuEventQuery", &[join]), 907);
    ok("cuStreamWaitEvent", &[first, join, 0]);
    assert_eq!(launch(step, 1, 8, first, &[data, 8]), 0);
    let graph = end_capture(first);
    let mut edges = 0usize;
    ok("cuGraphGetEdges", &[graph, 0, 0, at(&mut edges)]);
    assert_eq!((node_count(graph), edges), (4, 4));
    let exec = get("cuGraphInstantiateWithFlags", &[graph, 0]);
    ok("cuGraphLaunch", &[exec, 0]);
    assert_eq!(download::<u32>(data, 8), [11, 11, 11, 11, 13, 13, 13, 13]);
    let mut status = 9u32;
    ok("cuStreamIsCapturing", &[second, at(&mut status)]);
    assert_eq!(status, 0);
}

#[test]
fn a_capture_refuses_what_would_break_it() {
    let session = Session::new(KERNELS);
    let step = session.function("step");
    let data = upload(&[0u32; 8]);
    let (stream, other) = (get("cuStreamCreate", &[0]), get("cuStreamCreate", &[0]));
    let event = get("cuEventCreate", &[2]);
    let outside = get("cuEventCreate", &[2]);
    ok("cuEventRecord", &[outside, 0]);
    let begin = || ok("cuStreamBeginCapture_v2", &[stream, THREAD_LOCAL]);
    let end = |stream| code("cuStreamEndCapture", &[stream, at(&mut 0usize)]);
    assert_eq!(end(stream), 401);
    assert_eq!(code("cuStreamBeginCapture_v2", &[0, THREAD_LOCAL]), 900);
    // A stream that is not joined.
    begin();
    ok("cuEventRecord", &[event, stream]);
    ok("cuStreamWaitEvent", &[other, event, 0]);
    assert_eq!(launch(step, 1, 1, other, &[data, 1]), 0);
    assert_eq!(end(stream), 904);
    // Synchronisation, work in the legacy stream, allocation.
    for (name, arguments, expected) in [
        ("cuStreamSynchronize", vec![stream], 900),
        ("cuCtxSynchronize", vec![], 900),
        ("cuMemcpyDtoD_v2", vec![data, data + 4, 4], 906),
        ("cuMemAlloc_v2", vec![at(&mut 0usize), 4], 900),
        ("cuStreamWaitEvent", vec![stream, outside, 0], 905),
    ] {
        begin();
        assert_eq!(code(name, &arguments), expected, "{name}");
        assert_eq!(launch(step, 1, 1, stream, &[data, 1]), 901, "{name}");
        assert_eq!(end(stream), 901, "{name}");
    }
    begin();
    assert_eq!(end(other), 401);
    assert_eq!(end(stream), 0);
    assert_eq!(download::<u32>(data, 1), [0]);
}

#[test]
fn graphs_are_built_node_by_node_and_updated() {
    let session = Session::new(KERNELS);
    let step = session.function("step");
    let data = upload(&[0u32; 4]);
    let graph = get("cuGraphCreate", &[0]);
    let (mut address, mut amount) = (data, 5usize);
    let mut params = [at(&mut address), at(&mut amount)];
    // CUDA_KERNEL_NODE_PARAMS_v1: function; grid, block, shared as 32-bit words; parameters; extra.
    let pack = |low: usize, high: usize| low | high << 32;
    let mut kernel = [step, pack(1, 1), pack(1, 4), pack(1, 1), 0, at(&mut params), 0];
    // CUDA_MEMSET_NODE_PARAMS.
    let mut fill = [data, 0, pack(3, 4), 4, 1];
    // Added in the wrong order: the dependency puts it right.
    let second = get("cuGraphAddKernelNode", &[graph, 0, 0, at(&mut kernel)]);
    let mut first = get("cuGraphAddMemsetNode", &[graph, 0, 0, at(&mut fill), 0]);
    let mut after = second;
    ok("cuGraphAddDependencies", &[graph, at(&mut first), at(&mut after), 1]);
    let exec = get("cuGraphInstantiateWithFlags", &[graph, 0]);
    ok("cuGraphLaunch", &[exec, 0]);
    assert_eq!(download::<u32>(data, 4), [8; 4]);
    amount = 50;
    ok("cuGraphExecKernelNodeSetParams", &[exec, second, at(&mut kernel)]);
    ok("cuGraphLaunch", &[exec, 0]);
    assert_eq!(download::<u32>(data, 4), [53; 4]);
    ok("cuGraphNodeSetEnabled", &[exec, second, 0]);
    ok("cuGraphLaunch", &[exec, 0]);
    assert_eq!(download::<u32>(data, 4), [3; 4]);
    // A circle cannot be instantiated.
    ok("cuGraphAddDependencies", &[graph, at(&mut after), at(&mut first), 1]);
    assert_eq!(code("cuGraphInstantiateWithFlags", &[at(&mut 0usize), graph, 0]), 1);
    assert_eq!(amount, 50);
}

#[test]
fn one_structure_describes_nodes_of_all_kinds() {
    let session = Session::new(KERNELS);
    let (data, copy) = (upload(&[0u32; 4]), upload(&[0u32; 4]));
    let graph = get("cuGraphCreate", &[0]);
    let pack = |low: usize, high: usize| low | high << 32;
    // CUgraphNodeParams: 32 words, of which the first two are the kind; then the union.
    let node = |kind: usize, union: &[usize]| {
        let mut words = [0usize; 32];
        words[0] = kind;
        words[2..2 + union.len()].copy_from_slice(union);
        words
    };
    let (mut address, mut amount) = (data, 5usize);
    let mut params = [at(&mut address), at(&mut amount)];
    let step = session.function("step");
    let nodes = [
        node(2, &[data, 0, pack(2, 4), 4, 1, 0]),
        node(0, &[step, pack(1, 1), pack(1, 4), pack(1, 1), 0, at(&mut params), 0, 0, 0]),
        // Flags, context; then CUDA_MEMCPY3D.
        node(1, &[0, 0, 0, 0, 0, 0, 2, 0, data, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, copy, 0, 0, 0, 0, 16, 1, 1]),
    ];
    let mut last = 0usize;
    for mut words in nodes {
        let before = last;
        let count = usize::from(before != 0);
        last = get("cuGraphAddNode_v2", &[graph, at(&mut { before }), 0, count, at(&mut words)]);
    }
    let mut kind = 9u32;
    ok("cuGraphNodeGetType", &[last, at(&mut kind)]);
    assert_eq!((node_count(graph), kind), (3, 1));
    let exec = get("cuGraphInstantiateWithFlags", &[graph, 0]);
    ok("cuGraphLaunch", &[exec, 0]);
    assert_eq!(download::<u32>(copy, 4), [7; 4]);
    assert_eq!(code("cuGraphAddNode_v2", &[at(&mut last), graph, 0, 0, 0, at(&mut node(13, &[]))]), 801);
    assert_eq!(amount, 5);
}

#[test]
fn an_event_that_was_never_recorded_holds_nothing_back() {
    let session = Session::new(KERNELS);
    let _function = session.function("step");
    let (stream, event) = (get("cuStreamCreate", &[1]), get("cuEventCreate", &[2]));
    ok("cuStreamBeginCapture_v2", &[stream, THREAD_LOCAL]);
    ok("cuStreamWaitEvent", &[stream, event, 0]);
    assert_eq!(node_count(end_capture(stream)), 0);
}

#[test]
fn memory_allocated_in_a_capture_belongs_to_the_graph() {
    let session = Session::new(KERNELS);
    let step = session.function("step");
    let out = upload(&[0u32; 4]);
    let stream = get("cuStreamCreate", &[1]);
    ok("cuStreamBeginCapture_v2", &[stream, THREAD_LOCAL]);
    let scratch = get("cuMemAllocAsync", &[16, stream]);
    ok("cuMemsetD32Async", &[scratch, 4, 4, stream]);
    assert_eq!(launch(step, 1, 4, stream, &[scratch, 3]), 0);
    ok("cuMemcpyDtoDAsync_v2", &[out, scratch, 16, stream]);
    ok("cuMemFreeAsync", &[scratch, stream]);
    let graph = end_capture(stream);
    let exec = get("cuGraphInstantiateWithFlags", &[graph, 0]);
    ok("cuGraphLaunch", &[exec, stream]);
    ok("cuGraphLaunch", &[exec, stream]);
    assert_eq!(download::<u32>(out, 4), [7; 4]);
    ok("cuGraphDestroy", &[graph]);
    ok("cuGraphExecDestroy", &[exec]);
    assert_eq!(code("cuMemFree_v2", &[scratch]), 1);
}

#[test]
fn graphs_keep_objects_of_the_program_until_nobody_needs_them() {
    extern "C" fn destroy(data: *mut std::ffi::c_void) {
        // SAFETY: the test passes the address of its counter.
        unsafe { *data.cast::<u32>() += 1 };
    }
    let _session = Session::new(KERNELS);
    let mut destroyed = 0u32;
    let counter = at(&mut destroyed);
    // SAFETY: the counter is alive and changed by the driver only.
    let count = || unsafe { std::ptr::read_volatile(counter as *const u32) };
    let graph = get("cuGraphCreate", &[0]);
    let object = get("cuUserObjectCreate", &[counter, destroy as *const () as usize, 2, 1]);
    ok("cuGraphRetainUserObject", &[graph, object, 1, 1]);
    ok("cuUserObjectRelease", &[object, 1]);
    assert_eq!((code("cuUserObjectRelease", &[object, 1]), count()), (1, 0));
    let exec = get("cuGraphInstantiateWithFlags", &[graph, 0]);
    ok("cuGraphDestroy", &[graph]);
    assert_eq!(count(), 0);
    ok("cuGraphExecDestroy", &[exec]);
    assert_eq!(count(), 1);
}
