//! Graphs: operations with dependencies, made by captures or node by node, and run as a whole.
//!
//! An executable graph is the list of operations in an order that keeps the dependencies: of the nodes that may come next,
//! the one that was added first. Running it is running the list.

use std::collections::{HashMap, HashSet};
use std::ffi::{c_char, c_uint};
use std::fmt::Write;
use std::sync::{Arc, Mutex, Weak};

use crate::context::Context;
use crate::errors::{Answer, Code, GRAPH_EXEC_UPDATE_FAILURE, INVALID_VALUE, OPERATING_SYSTEM, answer};
use crate::state::{driver, lock};
use crate::submit::{Operation, execute, submit};
use crate::types::{Handle, In, InstantiateParams, Name, Out, UpdateResult};
use crate::user_object::Retained;

pub struct Graph {
    pub handle: Handle,
    nodes: Mutex<Vec<Node>>,
    /// Objects of the program that it keeps.
    pub retained: Mutex<Vec<Retained>>,
    /// To be told to its nodes.
    this: Weak<Graph>,
}

#[derive(Clone)]
pub struct Node {
    pub handle: Handle,
    pub operation: Operation,
    pub dependencies: Vec<Handle>,
}

/// Where the node of a handle is.
pub struct NodePlace {
    pub graph: Weak<Graph>,
}

pub struct GraphExec {
    pub handle: Handle,
    /// The graph of a child node.
    pub source: Option<Arc<Graph>>,
    pub steps: Mutex<Vec<Step>>,
    flags: u64,
    _retained: Vec<Retained>,
}

#[derive(Clone)]
pub struct Step {
    /// The node of the graph that was instantiated.
    pub node: Handle,
    pub operation: Operation,
    pub is_enabled: bool,
}

/// `CUgraphNodeType` of an operation.
pub fn kind(operation: &Operation) -> c_uint {
    match operation {
        Operation::Kernel(_) => 0,
        Operation::Copy(_) => 1,
        Operation::Fill(_) => 2,
        Operation::Host(_) => 3,
        Operation::Graph(_) => 4,
        Operation::Empty => 5,
        Operation::Wait(_) => 6,
        Operation::Record(_) => 7,
        Operation::Allocate(_) => 10,
        Operation::Free(_) => 11,
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if let Ok(driver) = driver() {
            for node in lock(&self.nodes).iter() {
                driver.nodes.remove(node.handle);
            }
        }
    }
}

impl Graph {
    /// A new graph in the table.
    pub fn register() -> Answer<Arc<Self>> {
        let handle = crate::state::new_handle();
        let graph = Arc::new_cyclic(|this| Self {
            handle,
            nodes: Mutex::default(),
            retained: Mutex::default(),
            this: this.clone(),
        });
        driver()?.graphs.put(handle, graph.clone());
        Ok(graph)
    }

    pub fn add(&self, operation: Operation, dependencies: Vec<Handle>) -> Answer<Handle> {
        let mut nodes = lock(&self.nodes);
        let is_known = |wanted: &Handle| nodes.iter().any(|node| node.handle == *wanted);
        if !dependencies.iter().all(is_known) {
            return Err(INVALID_VALUE);
        }
        let handle = crate::state::new_handle();
        driver()?.nodes.put(handle, Arc::new(NodePlace { graph: self.this.clone() }));
        nodes.push(Node { handle, operation, dependencies });
        Ok(handle)
    }

    pub fn dependencies(&self, node: Handle) -> Option<Vec<Handle>> {
        lock(&self.nodes).iter().find(|known| known.handle == node).map(|node| node.dependencies.clone())
    }

    pub fn nodes(&self) -> Vec<Node> {
        lock(&self.nodes).clone()
    }

    /// Changes a node.
    pub fn change<T>(&self, node: Handle, change: impl FnOnce(&mut Node) -> Answer<T>) -> Answer<T> {
        change(lock(&self.nodes).iter_mut().find(|known| known.handle == node).ok_or(INVALID_VALUE)?)
    }

    pub fn remove(&self, node: Handle) -> Answer {
        let removed = {
            let mut nodes = lock(&self.nodes);
            let index = nodes.iter().position(|known| known.handle == node).ok_or(INVALID_VALUE)?;
            for other in nodes.iter_mut() {
                other.dependencies.retain(|&dependency| dependency != node);
            }
            nodes.remove(index)
        };
        driver()?.nodes.remove(removed.handle);
        Ok(())
    }

    /// A copy with nodes of its own.
    pub fn copy(&self) -> Answer<Arc<Self>> {
        let copy = Self::register()?;
        let mut renamed: HashMap<Handle, Handle> = HashMap::new();
        for step in self.ordered()? {
            let dependencies = step.dependencies.iter().filter_map(|old| renamed.get(old).copied()).collect();
            renamed.insert(step.handle, copy.add(step.operation, dependencies)?);
        }
        *lock(&copy.retained) = lock(&self.retained).clone();
        Ok(copy)
    }

    /// The nodes in an order that keeps the dependencies.
    ///
    /// # Errors
    /// They go in a circle.
    fn ordered(&self) -> Answer<Vec<Node>> {
        let mut left = self.nodes();
        let mut done: HashSet<Handle> = HashSet::new();
        let mut ordered = Vec::with_capacity(left.len());
        // Nodes nearly always come after what they depend on: one pass then.
        while !left.is_empty() {
            let before = ordered.len();
            let mut later = Vec::new();
            for node in left {
                if node.dependencies.iter().all(|dependency| done.contains(dependency)) {
                    done.insert(node.handle);
                    ordered.push(node);
                } else {
                    later.push(node);
                }
            }
            if ordered.len() == before {
                return Err(INVALID_VALUE);
            }
            left = later;
        }
        Ok(ordered)
    }

    fn steps(&self) -> Answer<Vec<Step>> {
        let step = |node: Node| Step { node: node.handle, operation: node.operation, is_enabled: true };
        Ok(self.ordered()?.into_iter().map(step).collect())
    }

    /// An executable graph that no table has: a child node's.
    pub fn as_child(&self) -> Answer<Arc<GraphExec>> {
        let copy = self.copy()?;
        let steps = Mutex::new(copy.steps()?);
        Ok(Arc::new(GraphExec {
            handle: 0,
            source: Some(copy),
            steps,
            flags: 0,
            _retained: lock(&self.retained).clone(),
        }))
    }
}

impl Drop for GraphExec {
    fn drop(&mut self) {
        if let (Some(source), Ok(driver)) = (&self.source, driver()) {
            driver.graphs.remove(source.handle);
        }
    }
}

impl GraphExec {
    pub fn run(&self, context: &Context) -> Answer {
        let steps: Vec<Operation> =
            lock(&self.steps).iter().filter(|step| step.is_enabled).map(|step| step.operation.clone()).collect();
        for operation in &steps {
            // What comes after a fault does not run.
            if context.check().is_err() {
                break;
            }
            execute(context, operation)?;
        }
        Ok(())
    }

    pub fn change<T>(&self, node: Handle, change: impl FnOnce(&mut Step) -> Answer<T>) -> Answer<T> {
        change(lock(&self.steps).iter_mut().find(|step| step.node == node).ok_or(INVALID_VALUE)?)
    }
}

/// The graph of a handle.
pub fn graph(handle: Handle) -> Answer<Arc<Graph>> {
    driver()?.graphs.get(handle).ok_or(INVALID_VALUE)
}

/// The executable graph of a handle.
pub fn graph_exec(handle: Handle) -> Answer<Arc<GraphExec>> {
    driver()?.graph_execs.get(handle).ok_or(INVALID_VALUE)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphCreate(handle: Out<Handle>, flags: c_uint) -> Code {
    answer("cuGraphCreate", || {
        if flags != 0 || handle.is_null() {
            return Err(INVALID_VALUE);
        }
        handle.put(Graph::register()?.handle)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphDestroy(handle: Handle) -> Code {
    answer("cuGraphDestroy", || driver()?.graphs.remove(handle).map(|_| ()).ok_or(INVALID_VALUE))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphClone(handle: Out<Handle>, original: Handle) -> Code {
    answer("cuGraphClone", || handle.put(graph(original)?.copy()?.handle))
}

fn instantiate(target: Out<Handle>, handle: Handle, flags: u64) -> Answer {
    if target.is_null() {
        return Err(INVALID_VALUE);
    }
    let graph = graph(handle)?;
    let (steps, retained) = (Mutex::new(graph.steps()?), lock(&graph.retained).clone());
    let make = |handle| GraphExec { handle, source: None, steps, flags, _retained: retained };
    target.put(driver()?.graph_execs.add(make).handle)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphInstantiateWithFlags(exec: Out<Handle>, handle: Handle, flags: u64) -> Code {
    answer("cuGraphInstantiate", || instantiate(exec, handle, flags))
}

/// The form before CUDA 12, with a node and a text about what is wrong.
#[unsafe(no_mangle)]
pub extern "C" fn cuGraphInstantiate_v2(
    exec: Out<Handle>,
    handle: Handle,
    error_node: Out<Handle>,
    log: Out<c_char>,
    log_bytes: usize,
) -> Code {
    answer("cuGraphInstantiate_v2", || {
        error_node.put_if_wanted(0);
        if log_bytes > 0 {
            log.put_if_wanted(0);
        }
        instantiate(exec, handle, 0)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphInstantiateWithParams(
    exec: Out<Handle>,
    handle: Handle,
    params: Out<InstantiateParams>,
) -> Code {
    answer("cuGraphInstantiateWithParams", || {
        let asked = params.get()?;
        let result = instantiate(exec, handle, asked.flags);
        params.put(InstantiateParams { error_node: 0, result: u32::from(result.is_err()), ..asked })?;
        result
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphExecGetFlags(exec: Handle, flags: Out<u64>) -> Code {
    answer("cuGraphExecGetFlags", || flags.put(graph_exec(exec)?.flags))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphUpload(exec: Handle, stream: Handle) -> Code {
    answer("cuGraphUpload", || {
        crate::stream::resolve(stream)?;
        graph_exec(exec).map(|_| ())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphLaunch(exec: Handle, stream: Handle) -> Code {
    answer("cuGraphLaunch", || submit(stream, Operation::Graph(graph_exec(exec)?)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphExecDestroy(exec: Handle) -> Code {
    answer("cuGraphExecDestroy", || driver()?.graph_execs.remove(exec).map(|_| ()).ok_or(INVALID_VALUE))
}

/// Gives an executable graph the operations of another graph of the same shape. What differs, by `CUgraphExecUpdateResult`.
fn update(exec: Handle, handle: Handle) -> Answer<UpdateResult> {
    const TOPOLOGY_CHANGED: c_uint = 2;
    const TYPE_CHANGED: c_uint = 3;
    let exec = graph_exec(exec)?;
    let steps = graph(handle)?.steps()?;
    let mut known = lock(&exec.steps);
    let failed = |result, error_node| Ok(UpdateResult { result, error_node, error_from_node: 0 });
    if known.len() != steps.len() {
        return failed(TOPOLOGY_CHANGED, steps.get(known.len()).map_or(0, |step| step.node));
    }
    if let Some((step, _)) = steps.iter().zip(known.iter()).find(|(a, b)| kind(&a.operation) != kind(&b.operation)) {
        return failed(TYPE_CHANGED, step.node);
    }
    for (old, new) in known.iter_mut().zip(steps) {
        // Its nodes stay those of the graph that was instantiated.
        old.operation = new.operation;
    }
    Ok(UpdateResult { result: 0, error_node: 0, error_from_node: 0 })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphExecUpdate_v2(exec: Handle, handle: Handle, result: Out<UpdateResult>) -> Code {
    answer("cuGraphExecUpdate", || {
        let outcome = update(exec, handle)?;
        result.put(outcome)?;
        if outcome.result == 0 { Ok(()) } else { Err(GRAPH_EXEC_UPDATE_FAILURE) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphExecUpdate(
    exec: Handle,
    handle: Handle,
    error_node: Out<Handle>,
    result: Out<c_uint>,
) -> Code {
    answer("cuGraphExecUpdate", || {
        let outcome = update(exec, handle)?;
        error_node.put_if_wanted(outcome.error_node);
        result.put(outcome.result)?;
        if outcome.result == 0 { Ok(()) } else { Err(GRAPH_EXEC_UPDATE_FAILURE) }
    })
}

/// Writes a list by the interface's custom: its length where there is no room, else as much as fits.
pub fn put_list<T: Copy>(target: Out<T>, count: Out<usize>, values: &[T]) -> Answer {
    if target.is_null() {
        return count.put(values.len());
    }
    let room = count.get()?;
    let fitting = room.min(values.len());
    target.put_all(&values[..fitting])?;
    count.put(fitting)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphGetNodes(handle: Handle, nodes: Out<Handle>, count: Out<usize>) -> Code {
    answer("cuGraphGetNodes", || {
        let all: Vec<Handle> = graph(handle)?.nodes().iter().map(|node| node.handle).collect();
        put_list(nodes, count, &all)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphGetRootNodes(handle: Handle, nodes: Out<Handle>, count: Out<usize>) -> Code {
    answer("cuGraphGetRootNodes", || {
        let nodes_of = graph(handle)?.nodes();
        let roots: Vec<Handle> =
            nodes_of.iter().filter(|node| node.dependencies.is_empty()).map(|node| node.handle).collect();
        put_list(nodes, count, &roots)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphDebugDotPrint(handle: Handle, path: Name, _flags: c_uint) -> Code {
    answer("cuGraphDebugDotPrint", || {
        const NAMES: [&str; 12] =
            ["kernel", "copy", "fill", "host", "graph", "empty", "wait", "record", "", "", "allocate", "free"];
        let mut text = String::from("digraph graph_1 {\n");
        for node in graph(handle)?.nodes() {
            let label = match &node.operation {
                Operation::Kernel(launch) => launch.function.info()?.name.clone(),
                other => NAMES[kind(other) as usize].into(),
            };
            // Writing to a string cannot fail.
            let _ = writeln!(text, "  n{} [label=\"{label}\"];", node.handle);
            for dependency in node.dependencies {
                let _ = writeln!(text, "  n{dependency} -> n{};", node.handle);
            }
        }
        text.push_str("}\n");
        std::fs::write(path.string()?, text).map_err(|_| OPERATING_SYSTEM)
    })
}

/// The graph that a node is in.
pub fn graph_of(node: Handle) -> Answer<Arc<Graph>> {
    driver()?.nodes.get(node).and_then(|place| place.graph.upgrade()).ok_or(INVALID_VALUE)
}

/// Adds a node as the interface asks for it.
pub fn add_node(
    target: Out<Handle>,
    handle: Handle,
    dependencies: In<Handle>,
    count: usize,
    operation: Operation,
) -> Answer {
    if target.is_null() {
        return Err(INVALID_VALUE);
    }
    target.put(graph(handle)?.add(operation, dependencies.all(count)?)?)
}
