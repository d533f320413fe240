//! Nodes by one structure for all kinds (`CUgraphNodeParams`), memory nodes, attributes of kernel nodes.

use std::ffi::c_uint;
use std::sync::Arc;

use crate::context::usable;
use crate::copy::{Copy, Fill};
use crate::errors::{Answer, Code, INVALID_VALUE, NOT_SUPPORTED, answer};
use crate::event;
use crate::graph::{add_node, graph, graph_of};
use crate::graph_node::{operation, set, set_in_exec};
use crate::launch::KernelLaunch;
use crate::memory;
use crate::pool::GraphMemory;
use crate::state::driver;
use crate::submit::{HostCall, Operation};
use crate::types::{
    Copy3d, DevicePointer, FillNode, Handle, HostNode, In, KernelNode2, LOCATION_DEVICE, Out, PoolProperties,
};

/// `CUgraphNodeParams`: the kind, then a union of the structures of all kinds.
type NodeParams = [u8; 256];
const UNION: usize = 16;

/// `CUDA_MEMCPY_NODE_PARAMS`.
#[derive(Clone, std::marker::Copy)]
#[repr(C)]
struct CopyNode {
    flags: [c_uint; 2],
    context: Handle,
    copy: Copy3d,
}

/// `CUDA_MEM_ALLOC_NODE_PARAMS`.
#[derive(Clone, std::marker::Copy)]
#[repr(C)]
pub struct AllocateNode {
    pool: PoolProperties,
    accesses: usize,
    access_count: usize,
    bytes: usize,
    address: DevicePointer,
}

const _: () = assert!(size_of::<CopyNode>() == 216 && size_of::<AllocateNode>() == 120);

/// What a structure of this kind asks for.
fn asked(params: Out<NodeParams>) -> Answer<Operation> {
    let kind = params.of::<c_uint>().get()?;
    let union = params.of::<u8>().at(UNION);
    Ok(match kind {
        0 => {
            let KernelNode2 { mut node, kernel, .. } = union.of::<KernelNode2>().get()?;
            if node.function == 0 {
                node.function = kernel;
            }
            Operation::Kernel(KernelLaunch::new(&node, false)?)
        }
        1 => Operation::Copy(Copy::new3d(&union.of::<CopyNode>().get()?.copy)?),
        2 => Operation::Fill(Fill::new(&union.of::<FillNode>().get()?)?),
        3 => {
            let node = union.of::<HostNode>().get()?;
            Operation::Host(HostCall { function: node.function.ok_or(INVALID_VALUE)?, data: node.data })
        }
        4 => Operation::Graph(graph(union.of::<Handle>().get()?)?.as_child()?),
        5 => Operation::Empty,
        6 => Operation::Wait(event::of(union.of::<Handle>().get()?)?),
        7 => Operation::Record(event::of(union.of::<Handle>().get()?)?),
        10 => allocation(union.of())?,
        11 => Operation::Free(union.of::<DevicePointer>().get()?),
        kind => {
            crate::options::log(|| format!("graph nodes of kind {kind} are not supported"));
            return Err(NOT_SUPPORTED);
        }
    })
}

/// Allocates for a graph and tells the address.
fn allocation(params: Out<AllocateNode>) -> Answer<Operation> {
    let mut node = params.get()?;
    if node.pool.location.kind != LOCATION_DEVICE || node.pool.handle_types != 0 {
        return Err(NOT_SUPPORTED);
    }
    let pool = driver()?.default_pool;
    node.address = memory::allocate(usable()?.handle, node.bytes, pool, true)?;
    params.put(node)?;
    Ok(Operation::Allocate(Arc::new(GraphMemory { address: node.address, bytes: node.bytes })))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphAddNode(
    target: Out<Handle>,
    graph: Handle,
    dependencies: In<Handle>,
    count: usize,
    params: Out<NodeParams>,
) -> Code {
    answer("cuGraphAddNode", || add_node(target, graph, dependencies, count, asked(params)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphAddNode_v2(
    target: Out<Handle>,
    graph: Handle,
    dependencies: In<Handle>,
    _edges: In<u64>,
    count: usize,
    params: Out<NodeParams>,
) -> Code {
    answer("cuGraphAddNode_v2", || add_node(target, graph, dependencies, count, asked(params)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphNodeSetParams(node: Handle, params: Out<NodeParams>) -> Code {
    answer("cuGraphNodeSetParams", || set(node, asked(params)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphExecNodeSetParams(exec: Handle, node: Handle, params: Out<NodeParams>) -> Code {
    answer("cuGraphExecNodeSetParams", || set_in_exec(exec, node, asked(params)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphAddMemAllocNode(
    target: Out<Handle>,
    graph: Handle,
    dependencies: In<Handle>,
    count: usize,
    params: Out<AllocateNode>,
) -> Code {
    answer("cuGraphAddMemAllocNode", || add_node(target, graph, dependencies, count, allocation(params)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphMemAllocNodeGetParams(node: Handle, params: Out<AllocateNode>) -> Code {
    answer("cuGraphMemAllocNodeGetParams", || {
        let Operation::Allocate(memory) = operation(node)? else { return Err(INVALID_VALUE) };
        let pool = PoolProperties {
            allocation_type: 1,
            handle_types: 0,
            location: crate::types::MemoryLocation { kind: LOCATION_DEVICE, id: 0 },
            security: 0,
            max_bytes: 0,
            usage: 0,
            reserved: [0; 54],
        };
        params.put(AllocateNode { pool, accesses: 0, access_count: 0, bytes: memory.bytes, address: memory.address })
    })
}

const COOPERATIVE: c_uint = 2;

/// Sets whether the kernel of a node is launched cooperatively.
fn set_cooperative(node: Handle, is_cooperative: bool) -> Answer {
    graph_of(node)?.change(node, |node| {
        let Operation::Kernel(launch) = &node.operation else { return Err(INVALID_VALUE) };
        node.operation = Operation::Kernel(launch.with_cooperation(is_cooperative)?);
        Ok(())
    })
}

fn is_cooperative(node: Handle) -> Answer<bool> {
    let Operation::Kernel(launch) = operation(node)? else { return Err(INVALID_VALUE) };
    Ok(launch.config.is_cooperative)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphKernelNodeSetAttribute(node: Handle, attribute: c_uint, value: In<c_uint>) -> Code {
    answer("cuGraphKernelNodeSetAttribute", || match attribute {
        COOPERATIVE => set_cooperative(node, value.get()? != 0),
        // Clusters.
        4 | 11 => Err(NOT_SUPPORTED),
        // Hints.
        _ => is_cooperative(node).map(|_| ()),
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphKernelNodeGetAttribute(node: Handle, attribute: c_uint, value: Out<[u64; 8]>) -> Code {
    answer("cuGraphKernelNodeGetAttribute", || {
        let is_set = attribute == COOPERATIVE && is_cooperative(node)?;
        value.put([u64::from(is_set), 0, 0, 0, 0, 0, 0, 0])
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphKernelNodeCopyAttributes(target: Handle, source: Handle) -> Code {
    answer("cuGraphKernelNodeCopyAttributes", || set_cooperative(target, is_cooperative(source)?))
}
