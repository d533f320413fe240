//! Nodes of graphs one by one: adding them, asking and changing what they do and depend on.

use std::ffi::c_uint;
use std::sync::Arc;

use crate::copy::{Copy, Fill};
use crate::errors::{Answer, Code, INVALID_VALUE, answer};
use crate::event::{self, Event};
use crate::graph::{add_node, graph, graph_exec, graph_of, kind, put_list};
use crate::launch::KernelLaunch;
use crate::submit::{HostCall, Operation};
use crate::types::{Copy3d, DevicePointer, FillNode, Handle, HostNode, In, KernelNode, KernelNode2, Out};

fn kernel(params: In<KernelNode>) -> Answer<Operation> {
    Ok(Operation::Kernel(KernelLaunch::new(&params.get()?, false)?))
}

fn kernel2(params: In<KernelNode2>) -> Answer<Operation> {
    let KernelNode2 { mut node, kernel, .. } = params.get()?;
    if node.function == 0 {
        node.function = kernel;
    }
    Ok(Operation::Kernel(KernelLaunch::new(&node, false)?))
}

fn copy(params: In<Copy3d>) -> Answer<Operation> {
    Ok(Operation::Copy(Copy::new3d(&params.get()?)?))
}

fn fill(params: In<FillNode>) -> Answer<Operation> {
    Ok(Operation::Fill(Fill::new(&params.get()?)?))
}

fn host(params: In<HostNode>) -> Answer<Operation> {
    let node = params.get()?;
    Ok(Operation::Host(HostCall { function: node.function.ok_or(INVALID_VALUE)?, data: node.data }))
}

fn child(handle: Handle) -> Answer<Operation> {
    Ok(Operation::Graph(graph(handle)?.as_child()?))
}

pub fn operation(node: Handle) -> Answer<Operation> {
    graph_of(node)?.change(node, |node| Ok(node.operation.clone()))
}

/// Replaces what a node does by something of the same kind.
pub fn set(node: Handle, operation: Operation) -> Answer {
    graph_of(node)?.change(node, |node| {
        if kind(&node.operation) != kind(&operation) {
            return Err(INVALID_VALUE);
        }
        node.operation = operation;
        Ok(())
    })
}

pub fn set_in_exec(exec: Handle, node: Handle, operation: Operation) -> Answer {
    graph_exec(exec)?.change(node, |step| {
        if kind(&step.operation) != kind(&operation) {
            return Err(INVALID_VALUE);
        }
        step.operation = operation;
        Ok(())
    })
}

fn kernel_params(node: Handle) -> Answer<KernelNode> {
    let Operation::Kernel(launch) = operation(node)? else { return Err(INVALID_VALUE) };
    Ok(KernelNode {
        function: launch.function.handle,
        grid: launch.config.grid,
        block: launch.config.block,
        shared_bytes: launch.config.shared_bytes,
        params: In::from_address(launch.pointers().as_ptr() as usize),
        extra: In::from_address(0),
    })
}

fn recorded(node: Handle, wants_record: bool) -> Answer<Arc<Event>> {
    match (operation(node)?, wants_record) {
        (Operation::Record(event), true) | (Operation::Wait(event), false) => Ok(event),
        _ => Err(INVALID_VALUE),
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphAddKernelNode(
    target: Out<Handle>,
    graph: Handle,
    dependencies: In<Handle>,
    count: usize,
    params: In<KernelNode>,
) -> Code {
    answer("cuGraphAddKernelNode", || add_node(target, graph, dependencies, count, kernel(params)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphAddKernelNode_v2(
    target: Out<Handle>,
    graph: Handle,
    dependencies: In<Handle>,
    count: usize,
    params: In<KernelNode2>,
) -> Code {
    answer("cuGraphAddKernelNode_v2", || add_node(target, graph, dependencies, count, kernel2(params)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphAddMemcpyNode(
    target: Out<Handle>,
    graph: Handle,
    dependencies: In<Handle>,
    count: usize,
    params: In<Copy3d>,
    _context: Handle,
) -> Code {
    answer("cuGraphAddMemcpyNode", || add_node(target, graph, dependencies, count, copy(params)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphAddMemsetNode(
    target: Out<Handle>,
    graph: Handle,
    dependencies: In<Handle>,
    count: usize,
    params: In<FillNode>,
    _context: Handle,
) -> Code {
    answer("cuGraphAddMemsetNode", || add_node(target, graph, dependencies, count, fill(params)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphAddHostNode(
    target: Out<Handle>,
    graph: Handle,
    dependencies: In<Handle>,
    count: usize,
    params: In<HostNode>,
) -> Code {
    answer("cuGraphAddHostNode", || add_node(target, graph, dependencies, count, host(params)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphAddChildGraphNode(
    target: Out<Handle>,
    graph: Handle,
    dependencies: In<Handle>,
    count: usize,
    child_graph: Handle,
) -> Code {
    answer("cuGraphAddChildGraphNode", || add_node(target, graph, dependencies, count, child(child_graph)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphAddEmptyNode(
    target: Out<Handle>,
    graph: Handle,
    dependencies: In<Handle>,
    count: usize,
) -> Code {
    answer("cuGraphAddEmptyNode", || add_node(target, graph, dependencies, count, Operation::Empty))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphAddEventRecordNode(
    target: Out<Handle>,
    graph: Handle,
    dependencies: In<Handle>,
    count: usize,
    event: Handle,
) -> Code {
    answer("cuGraphAddEventRecordNode", || {
        add_node(target, graph, dependencies, count, Operation::Record(event::of(event)?))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphAddEventWaitNode(
    target: Out<Handle>,
    graph: Handle,
    dependencies: In<Handle>,
    count: usize,
    event: Handle,
) -> Code {
    answer("cuGraphAddEventWaitNode", || {
        add_node(target, graph, dependencies, count, Operation::Wait(event::of(event)?))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphAddMemFreeNode(
    target: Out<Handle>,
    graph: Handle,
    dependencies: In<Handle>,
    count: usize,
    address: DevicePointer,
) -> Code {
    answer("cuGraphAddMemFreeNode", || add_node(target, graph, dependencies, count, Operation::Free(address)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphKernelNodeSetParams(node: Handle, params: In<KernelNode>) -> Code {
    answer("cuGraphKernelNodeSetParams", || set(node, kernel(params)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphExecKernelNodeSetParams(exec: Handle, node: Handle, params: In<KernelNode>) -> Code {
    answer("cuGraphExecKernelNodeSetParams", || set_in_exec(exec, node, kernel(params)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphKernelNodeSetParams_v2(node: Handle, params: In<KernelNode2>) -> Code {
    answer("cuGraphKernelNodeSetParams_v2", || set(node, kernel2(params)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphExecKernelNodeSetParams_v2(exec: Handle, node: Handle, params: In<KernelNode2>) -> Code {
    answer("cuGraphExecKernelNodeSetParams_v2", || set_in_exec(exec, node, kernel2(params)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphMemcpyNodeSetParams(node: Handle, params: In<Copy3d>) -> Code {
    answer("cuGraphMemcpyNodeSetParams", || set(node, copy(params)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphExecMemcpyNodeSetParams(
    exec: Handle,
    node: Handle,
    params: In<Copy3d>,
    _context: Handle,
) -> Code {
    answer("cuGraphExecMemcpyNodeSetParams", || set_in_exec(exec, node, copy(params)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphMemsetNodeSetParams(node: Handle, params: In<FillNode>) -> Code {
    answer("cuGraphMemsetNodeSetParams", || set(node, fill(params)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphExecMemsetNodeSetParams(
    exec: Handle,
    node: Handle,
    params: In<FillNode>,
    _context: Handle,
) -> Code {
    answer("cuGraphExecMemsetNodeSetParams", || set_in_exec(exec, node, fill(params)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphHostNodeSetParams(node: Handle, params: In<HostNode>) -> Code {
    answer("cuGraphHostNodeSetParams", || set(node, host(params)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphExecHostNodeSetParams(exec: Handle, node: Handle, params: In<HostNode>) -> Code {
    answer("cuGraphExecHostNodeSetParams", || set_in_exec(exec, node, host(params)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphExecChildGraphNodeSetParams(exec: Handle, node: Handle, child_graph: Handle) -> Code {
    answer("cuGraphExecChildGraphNodeSetParams", || set_in_exec(exec, node, child(child_graph)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphEventRecordNodeSetEvent(node: Handle, event: Handle) -> Code {
    answer("cuGraphEventRecordNodeSetEvent", || set(node, Operation::Record(event::of(event)?)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphExecEventRecordNodeSetEvent(exec: Handle, node: Handle, event: Handle) -> Code {
    answer("cuGraphExecEventRecordNodeSetEvent", || set_in_exec(exec, node, Operation::Record(event::of(event)?)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphEventRecordNodeGetEvent(node: Handle, event: Out<Handle>) -> Code {
    answer("cuGraphEventRecordNodeGetEvent", || event.put(recorded(node, true)?.handle))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphEventWaitNodeSetEvent(node: Handle, event: Handle) -> Code {
    answer("cuGraphEventWaitNodeSetEvent", || set(node, Operation::Wait(event::of(event)?)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphExecEventWaitNodeSetEvent(exec: Handle, node: Handle, event: Handle) -> Code {
    answer("cuGraphExecEventWaitNodeSetEvent", || set_in_exec(exec, node, Operation::Wait(event::of(event)?)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphEventWaitNodeGetEvent(node: Handle, event: Out<Handle>) -> Code {
    answer("cuGraphEventWaitNodeGetEvent", || event.put(recorded(node, false)?.handle))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphKernelNodeGetParams(node: Handle, params: Out<KernelNode>) -> Code {
    answer("cuGraphKernelNodeGetParams", || params.put(kernel_params(node)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphKernelNodeGetParams_v2(node: Handle, params: Out<KernelNode2>) -> Code {
    answer("cuGraphKernelNodeGetParams_v2", || {
        params.put(KernelNode2 { node: kernel_params(node)?, kernel: 0, context: 0 })
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphMemsetNodeGetParams(node: Handle, params: Out<FillNode>) -> Code {
    answer("cuGraphMemsetNodeGetParams", || {
        let Operation::Fill(fill) = operation(node)? else { return Err(INVALID_VALUE) };
        params.put(fill.node())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphHostNodeGetParams(node: Handle, params: Out<HostNode>) -> Code {
    answer("cuGraphHostNodeGetParams", || {
        let Operation::Host(call) = operation(node)? else { return Err(INVALID_VALUE) };
        params.put(HostNode { function: Some(call.function), data: call.data })
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphChildGraphNodeGetGraph(node: Handle, graph: Out<Handle>) -> Code {
    answer("cuGraphChildGraphNodeGetGraph", || {
        let Operation::Graph(child) = operation(node)? else { return Err(INVALID_VALUE) };
        graph.put(child.source.as_ref().ok_or(INVALID_VALUE)?.handle)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphMemFreeNodeGetParams(node: Handle, address: Out<DevicePointer>) -> Code {
    answer("cuGraphMemFreeNodeGetParams", || {
        let Operation::Free(freed) = operation(node)? else { return Err(INVALID_VALUE) };
        address.put(freed)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphNodeGetType(node: Handle, number: Out<c_uint>) -> Code {
    answer("cuGraphNodeGetType", || number.put(kind(&operation(node)?)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphDestroyNode(node: Handle) -> Code {
    answer("cuGraphDestroyNode", || graph_of(node)?.remove(node))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphNodeSetEnabled(exec: Handle, node: Handle, enabled: c_uint) -> Code {
    answer("cuGraphNodeSetEnabled", || {
        graph_exec(exec)?.change(node, |step| {
            step.is_enabled = enabled != 0;
            Ok(())
        })
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphNodeGetEnabled(exec: Handle, node: Handle, enabled: Out<c_uint>) -> Code {
    answer("cuGraphNodeGetEnabled", || {
        enabled.put(graph_exec(exec)?.change(node, |step| Ok(c_uint::from(step.is_enabled)))?)
    })
}

fn dependents(node: Handle) -> Answer<Vec<Handle>> {
    let nodes = graph_of(node)?.nodes();
    Ok(nodes.iter().filter(|other| other.dependencies.contains(&node)).map(|other| other.handle).collect())
}

fn put_edges(handle: Handle, from: Out<Handle>, to: Out<Handle>, count: Out<usize>) -> Answer {
    let nodes = graph(handle)?.nodes();
    let edges = || nodes.iter().flat_map(|node| node.dependencies.iter().map(|&before| (before, node.handle)));
    let (befores, afters): (Vec<Handle>, Vec<Handle>) = edges().unzip();
    if !to.is_null() {
        put_list(to, count, &afters)?;
    }
    put_list(from, count, &befores)
}

fn change_edges(from: In<Handle>, to: In<Handle>, count: usize, adds: bool) -> Answer {
    for (before, after) in from.all(count)?.into_iter().zip(to.all(count)?) {
        let graph = graph_of(after)?;
        graph.dependencies(before).ok_or(INVALID_VALUE)?;
        graph.change(after, |node| {
            let known = node.dependencies.iter().position(|&dependency| dependency == before);
            match (known, adds) {
                (None, true) => node.dependencies.push(before),
                (Some(index), false) => drop(node.dependencies.remove(index)),
                _ => return Err(INVALID_VALUE),
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Data of edges: none has any, so zeros are given.
fn put_edge_data(edges: Out<u64>, count: Out<usize>) {
    if !edges.is_null() {
        let _ = count.get().and_then(|count| edges.put_all(&vec![0; count]));
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphGetEdges(graph: Handle, from: Out<Handle>, to: Out<Handle>, count: Out<usize>) -> Code {
    answer("cuGraphGetEdges", || put_edges(graph, from, to, count))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphGetEdges_v2(
    graph: Handle,
    from: Out<Handle>,
    to: Out<Handle>,
    edges: Out<u64>,
    count: Out<usize>,
) -> Code {
    answer("cuGraphGetEdges_v2", || {
        put_edges(graph, from, to, count)?;
        put_edge_data(edges, count);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphNodeGetDependencies(node: Handle, list: Out<Handle>, count: Out<usize>) -> Code {
    answer("cuGraphNodeGetDependencies", || {
        put_list(list, count, &graph_of(node)?.dependencies(node).ok_or(INVALID_VALUE)?)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphNodeGetDependencies_v2(
    node: Handle,
    list: Out<Handle>,
    edges: Out<u64>,
    count: Out<usize>,
) -> Code {
    answer("cuGraphNodeGetDependencies_v2", || {
        put_list(list, count, &graph_of(node)?.dependencies(node).ok_or(INVALID_VALUE)?)?;
        put_edge_data(edges, count);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphNodeGetDependentNodes(node: Handle, list: Out<Handle>, count: Out<usize>) -> Code {
    answer("cuGraphNodeGetDependentNodes", || put_list(list, count, &dependents(node)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphNodeGetDependentNodes_v2(
    node: Handle,
    list: Out<Handle>,
    edges: Out<u64>,
    count: Out<usize>,
) -> Code {
    answer("cuGraphNodeGetDependentNodes_v2", || {
        put_list(list, count, &dependents(node)?)?;
        put_edge_data(edges, count);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphAddDependencies(_graph: Handle, from: In<Handle>, to: In<Handle>, count: usize) -> Code {
    answer("cuGraphAddDependencies", || change_edges(from, to, count, true))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphAddDependencies_v2(
    _graph: Handle,
    from: In<Handle>,
    to: In<Handle>,
    _edges: In<u64>,
    count: usize,
) -> Code {
    answer("cuGraphAddDependencies_v2", || change_edges(from, to, count, true))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphRemoveDependencies(_graph: Handle, from: In<Handle>, to: In<Handle>, count: usize) -> Code {
    answer("cuGraphRemoveDependencies", || change_edges(from, to, count, false))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphRemoveDependencies_v2(
    _graph: Handle,
    from: In<Handle>,
    to: In<Handle>,
    _edges: In<u64>,
    count: usize,
) -> Code {
    answer("cuGraphRemoveDependencies_v2", || change_edges(from, to, count, false))
}
