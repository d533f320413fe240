//! Loads and stores: from lane addresses to host memory.
//!
//! An access is cut into parts whose lanes go to one region (an allocation, the shared memory, ...); almost always that is
//! one part. Full warps that touch neighbouring words, or all the same one, move them as a block.

use super::block::SharedMemory;
use super::observe::{AccessEvent, Observe, Order, Target};
use super::run::Worker;
use super::warp::LocalMemory;
use super::{Outcome, Stopped, shared_load};
use crate::decode::program::{Address, AddressSpace, DataRegister, Extend, Load, NONE, Store};
use crate::decode::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW, WINDOW_BYTES};
use crate::error::{Access, FaultKind};
use crate::lanes::{LANE_BIT, LANES, Plane, Word, columns_of, store_lanes};

/// The memories that only the running warp's block reaches.
pub struct Nearby<'m> {
    pub shared: &'m mut SharedMemory,
    pub local: &'m mut LocalMemory,
}

/// Bytes of the widest store of a lane.
const MAX_STORE: usize = 32;

/// What an instruction wants of each of its lanes' addresses.
#[derive(Clone, Copy)]
pub struct Request {
    pub space: AddressSpace,
    pub bytes: u32,
    pub access: Access,
    pub order: Order,
}

impl Request {
    pub fn new(space: AddressSpace, bytes: u32, access: Access) -> Self {
        Self { space, bytes, access, order: Order::Plain }
    }

    pub fn with_order(self, order: Order) -> Self {
        Self { order, ..self }
    }

    /// The order of a load or store: ordered ones are volatile to decoding.
    fn volatile_if(self, is_volatile: bool) -> Self {
        if is_volatile { self.with_order(Order::Synchronizing) } else { self }
    }
}

/// Lanes whose addresses lie in one host region: lane `l` is at `pointer + (addresses[l] - origin)`.
#[derive(Clone, Copy)]
pub struct Region {
    pub pointer: *mut u8,
    pub origin: u64,
    /// Distance between the lanes' own parts, for local memory.
    stride: u64,
    pub lanes: u32,
    pub target: Target,
}

impl Region {
    /// Host memory of a lane.
    #[inline(always)]
    pub fn at(&self, addresses: &[u64; LANES], lane: usize) -> *mut u8 {
        self.pointer.wrapping_add(addresses[lane].wrapping_sub(self.origin) as usize)
    }
}

/// The active lanes, lowest first.
pub fn lanes_of(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lane = mask.trailing_zeros();
        (mask != 0).then(|| {
            mask &= mask - 1;
            lane as usize
        })
    })
}

#[inline(always)]
pub fn lane_addresses(planes: &[Plane], address: &Address) -> [u64; LANES] {
    let mut result = [0; LANES];
    if address.is_wide {
        let base = u64::view(planes, address.base);
        for lane in 0..LANES {
            result[lane] = base[lane].wrapping_add_signed(address.offset);
        }
    } else {
        let base = u32::view(planes, address.base);
        for lane in 0..LANES {
            // 32-bit addresses wrap at 32 bits.
            result[lane] = u64::from(base[lane].wrapping_add(address.offset as u32));
        }
    }
    result
}

/// Those of `lanes` for which `address - start <= last`, where `last` is the greatest distance that still fits.
#[inline(always)]
fn lanes_within(addresses: &[u64; LANES], lanes: u32, start: u64, last: u64) -> u32 {
    // Nearly always all 32 do. Then one sign tells: neither the distance nor what is left behind it is negative.
    if lanes == u32::MAX {
        let mut signs = 0;
        for address in addresses {
            let distance = address.wrapping_sub(start);
            signs |= distance | last.wrapping_sub(distance);
        }
        if signs >> 63 == 0 {
            return lanes;
        }
    }
    let mut inside = 0;
    for lane in 0..LANES {
        inside |= if addresses[lane].wrapping_sub(start) <= last { LANE_BIT[lane] } else { 0 };
    }
    inside & lanes
}

impl<O: Observe> Worker<'_, O> {
    /// The region of the first of `lanes`, and which other lanes share it. Rewrites the addresses of those lanes to be
    /// relative to their space (generic windows, per-lane local memory).
    #[inline(always)]
    pub fn resolve(
        &mut self,
        nearby: &mut Nearby<'_>,
        request: Request,
        addresses: &mut [u64; LANES],
        lanes: u32,
    ) -> Outcome<Region> {
        let Request { space, bytes, access, .. } = request;
        let first = lanes.trailing_zeros();
        let address = addresses[first as usize & 31];
        let (space, window) = match space {
            AddressSpace::Generic if !(SHARED_WINDOW..PARAM_WINDOW + WINDOW_BYTES).contains(&address) => {
                (AddressSpace::Global, 0)
            }
            AddressSpace::Generic if address < LOCAL_WINDOW => (AddressSpace::Shared, SHARED_WINDOW),
            AddressSpace::Generic if address < PARAM_WINDOW => (AddressSpace::Local, LOCAL_WINDOW),
            AddressSpace::Generic => (AddressSpace::Param, PARAM_WINDOW),
            named => (named, 0),
        };
        let outside = |address: u64, near: Option<String>| {
            Stopped::new(FaultKind::OutOfBounds { access, address, bytes, near }, first)
        };
        match space {
            AddressSpace::Global => {
                let slot = &mut self.recent[self.pc as usize % 16];
                let allocations = self.launch.memory.allocations();
                let known = allocations.get(*slot as usize).filter(|a| address.wrapping_sub(a.start) < a.bytes);
                let allocation = match known {
                    Some(allocation) => allocation,
                    None => match self.launch.memory.find_index(address) {
                        Some(index) => {
                            *slot = index as u32;
                            &allocations[index]
                        }
                        None => {
                            return Err(Stopped::new(self.launch.memory.out_of_bounds(access, address, bytes), first));
                        }
                    },
                };
                if allocation.bytes < u64::from(bytes)
                    || address - allocation.start > allocation.bytes - u64::from(bytes)
                {
                    return Err(Stopped::new(self.launch.memory.out_of_bounds(access, address, bytes), first));
                }
                let last = allocation.bytes - u64::from(bytes);
                let inside = lanes_within(addresses, lanes, allocation.start, last);
                Ok(Region {
                    pointer: allocation.pointer(),
                    origin: allocation.start,
                    stride: 0,
                    lanes: inside,
                    target: Target::Global,
                })
            }
            AddressSpace::Shared => {
                let size = nearby.shared.bytes().len() as u64;
                let last = size.checked_sub(u64::from(bytes));
                match last {
                    Some(last) if address.wrapping_sub(window) <= last => {
                        let inside = lanes_within(addresses, lanes, window, last);
                        Ok(Region {
                            pointer: nearby.shared.bytes().as_mut_ptr(),
                            origin: window,
                            stride: 0,
                            lanes: inside,
                            target: Target::Shared,
                        })
                    }
                    _ => Err(outside(address, Some(format!("the block has {size} bytes of shared memory")))),
                }
            }
            AddressSpace::Local => {
                let stride = nearby.local.stride;
                let last = stride.checked_sub(u64::from(bytes));
                match last {
                    Some(last) if address.wrapping_sub(window) <= last => {
                        let inside = lanes_within(addresses, lanes, window, last);
                        for lane in lanes_of(inside) {
                            addresses[lane] += lane as u64 * stride;
                        }
                        Ok(Region {
                            pointer: nearby.local.bytes().as_mut_ptr(),
                            origin: window,
                            stride,
                            lanes: inside,
                            target: Target::Local,
                        })
                    }
                    _ => Err(outside(address, Some(format!("the thread has {stride} bytes of local memory")))),
                }
            }
            _ => {
                let params = self.launch.params;
                let last = (params.len() as u64).checked_sub(u64::from(bytes));
                match last {
                    Some(last) if address.wrapping_sub(window) <= last && access == Access::Read => {
                        let inside = lanes_within(addresses, lanes, window, last);
                        Ok(Region {
                            pointer: params.as_ptr().cast_mut(),
                            origin: window,
                            stride: 0,
                            lanes: inside,
                            target: Target::Param,
                        })
                    }
                    _ => Err(outside(address, Some(format!("the kernel has {} bytes of parameters", params.len())))),
                }
            }
        }
    }

    /// Refuses addresses that are not multiples of the access's size.
    #[inline(always)]
    pub fn check_alignment(&self, addresses: &[u64; LANES], lanes: u32, bytes: u32, access: Access) -> Outcome<()> {
        let mut low_bits = addresses.iter().fold(0, |bits, address| bits | address);
        if lanes != u32::MAX {
            low_bits = 0;
            for lane in 0..LANES {
                low_bits |= if lanes & LANE_BIT[lane] != 0 { addresses[lane] } else { 0 };
            }
        }
        if low_bits & u64::from(bytes - 1) == 0 {
            return Ok(());
        }
        let lane = lanes_of(lanes).find(|&lane| addresses[lane] & u64::from(bytes - 1) != 0).unwrap_or(0);
        Err(Stopped::new(FaultKind::Misaligned { access, address: addresses[lane], bytes }, lane as u32))
    }

    #[inline(always)]
    fn observe(&mut self, region: &Region, request: Request, addresses: &[u64; LANES], unchanged: u32) {
        if O::IS_ON {
            let mut relative = *addresses;
            if region.target != Target::Global {
                for (lane, address) in relative.iter_mut().enumerate() {
                    *address = address.wrapping_sub(region.origin).wrapping_sub(lane as u64 * region.stride);
                }
            }
            let event = AccessEvent {
                pc: self.pc,
                target: region.target,
                access: request.access,
                addresses: &relative,
                lanes: region.lanes,
                bytes: request.bytes,
                order: request.order,
                unchanged,
                block: self.block,
                warp: self.warp,
            };
            self.observer.access(self.launch, &event);
        }
    }

    /// Calls `f` for each region that the lanes' addresses lie in, after all checks.
    #[inline(always)]
    fn each_region(
        &mut self,
        nearby: &mut Nearby<'_>,
        request: Request,
        addresses: &mut [u64; LANES],
        lanes: u32,
        mut f: impl FnMut(&Region, &[u64; LANES]),
    ) -> Outcome<()> {
        let mut remaining = lanes;
        while remaining != 0 {
            let region = self.resolve(nearby, request, addresses, remaining)?;
            self.observe(&region, request, addresses, 0);
            f(&region, addresses);
            remaining &= !region.lanes;
        }
        Ok(())
    }

    /// Calls `f` with the host memory of each lane, after all checks: `request.bytes` bytes, writable unless it reads.
    #[inline(always)]
    pub fn each_lane(
        &mut self,
        nearby: &mut Nearby<'_>,
        request: Request,
        addresses: &mut [u64; LANES],
        lanes: u32,
        mut f: impl FnMut(usize, *mut u8),
    ) -> Outcome<()> {
        self.each_region(nearby, request, addresses, lanes, |region, addresses| {
            for lane in lanes_of(region.lanes) {
                f(lane, region.at(addresses, lane));
            }
        })
    }

    #[inline(always)]
    pub fn load(&mut self, planes: &mut [Plane], nearby: &mut Nearby<'_>, load: &Load, active: u32) -> Outcome<()> {
        let total = u32::from(load.bytes) * u32::from(load.count);
        if !O::IS_ON && active == u32::MAX && shared_load::try_load(planes, nearby.shared.bytes(), load) {
            return Ok(());
        }
        let mut addresses = lane_addresses(planes, &load.address);
        self.check_alignment(&addresses, active, total, Access::Read)?;
        let request = Request::new(load.address.space, total, Access::Read).volatile_if(load.is_volatile);
        self.each_region(nearby, request, &mut addresses, active, |region, addresses| {
            // SAFETY: each lane's bytes were checked to lie in the region.
            unsafe { load_region(planes, load, region, addresses) };
        })
    }

    #[inline(always)]
    pub fn store(&mut self, planes: &mut [Plane], nearby: &mut Nearby<'_>, store: &Store, active: u32) -> Outcome<()> {
        let total = u32::from(store.bytes) * u32::from(store.count);
        let mut addresses = lane_addresses(planes, &store.address);
        self.check_alignment(&addresses, active, total, Access::Write)?;
        let request = Request::new(store.address.space, total, Access::Write).volatile_if(store.is_volatile);
        if O::SEES_VALUES {
            return self.observed_store(planes, nearby, store, request, &mut addresses, active);
        }
        self.each_region(nearby, request, &mut addresses, active, |region, addresses| {
            // SAFETY: each lane's bytes were checked to lie in the region; writes to parameters are refused.
            unsafe { store_region(planes, store, region, addresses) };
        })
    }

    /// A store that tells the observer, afterwards, where it changed nothing.
    fn observed_store(
        &mut self,
        planes: &mut [Plane],
        nearby: &mut Nearby<'_>,
        store: &Store,
        request: Request,
        addresses: &mut [u64; LANES],
        active: u32,
    ) -> Outcome<()> {
        let mut remaining = active;
        while remaining != 0 {
            let region = self.resolve(nearby, request, addresses, remaining)?;
            let mut before = [[0u8; MAX_STORE]; LANES];
            let bytes = (request.bytes as usize).min(MAX_STORE);
            for lane in lanes_of(region.lanes) {
                let source = region.at(addresses, lane);
                // SAFETY: each lane's bytes were checked to lie in the region.
                unsafe { std::ptr::copy_nonoverlapping(source, before[lane].as_mut_ptr(), bytes) };
            }
            // SAFETY: as above; writes to parameters are refused.
            unsafe { store_region(planes, store, &region, addresses) };
            let mut unchanged = 0;
            for lane in lanes_of(region.lanes) {
                let mut after = [0u8; MAX_STORE];
                // SAFETY: as above.
                unsafe { std::ptr::copy_nonoverlapping(region.at(addresses, lane), after.as_mut_ptr(), bytes) };
                unchanged |= if before[lane] == after { LANE_BIT[lane] } else { 0 };
            }
            self.observe(&region, request, addresses, unchanged);
            remaining &= !region.lanes;
        }
        Ok(())
    }
}

#[inline(always)]
fn is_run(addresses: &[u64; LANES], step: u64) -> bool {
    let mut differs = 0;
    for lane in 0..LANES {
        differs |= addresses[lane].wrapping_sub(addresses[0]) ^ (lane as u64 * step);
    }
    differs == 0
}

/// # Safety
/// Every lane of the region must have the load's bytes there.
#[inline(always)]
unsafe fn load_region(planes: &mut [Plane], load: &Load, region: &Region, addresses: &[u64; LANES]) {
    let at = |lane: usize| region.at(addresses, lane);
    let lanes = region.lanes;
    let register = load.registers[0];
    if load.bytes == 4 && load.count == 1 && register.planes == 1 && register.slot != NONE && !load.is_volatile {
        if lanes == u32::MAX {
            let target = u32::view_mut(planes, register.slot);
            if is_run(addresses, 4) {
                // SAFETY: 32 neighbouring words of the region.
                unsafe { std::ptr::copy_nonoverlapping(at(0), target.as_mut_ptr().cast(), 4 * LANES) };
            } else {
                for (lane, word) in target.iter_mut().enumerate() {
                    // SAFETY: the caller's.
                    *word = unsafe { at(lane).cast::<u32>().read_unaligned() };
                }
            }
            return;
        }
        let target = u32::view_mut(planes, register.slot);
        for lane in lanes_of(lanes) {
            // SAFETY: the caller's.
            target[lane] = unsafe { at(lane).cast::<u32>().read_unaligned() };
        }
        return;
    }
    if load.bytes == 4
        && load.count == 4
        && lanes == u32::MAX
        && load.registers[..4].iter().all(|r| r.planes == 1 && r.slot != NONE)
    {
        let mut rows = [[0u32; 4]; LANES];
        for (lane, row) in rows.iter_mut().enumerate() {
            // SAFETY: the caller's.
            *row = unsafe { at(lane).cast::<[u32; 4]>().read_unaligned() };
        }
        let values = columns_of(&rows);
        for (register, column) in load.registers.iter().zip(&values) {
            *u32::view_mut(planes, register.slot) = *column;
        }
        return;
    }
    for (element, register) in load.registers[..usize::from(load.count)].iter().enumerate() {
        if register.slot == NONE {
            continue;
        }
        let offset = element * usize::from(load.bytes);
        if load.bytes == 16 {
            let mut values = [0u128; LANES];
            for lane in lanes_of(lanes) {
                // SAFETY: the caller's.
                values[lane] = unsafe { at(lane).wrapping_add(offset).cast::<u128>().read_unaligned() };
            }
            store_lanes(planes, register.slot, &values, lanes);
            continue;
        }
        let mut values = [0u64; LANES];
        for lane in lanes_of(lanes) {
            let pointer = at(lane).wrapping_add(offset);
            // SAFETY: the caller's; ordered loads are aligned, as `check_alignment` saw.
            values[lane] = unsafe { read_word(pointer, load.bytes, load.is_volatile) };
        }
        if load.extend == Extend::Sign {
            let shift = 64 - 8 * u32::from(load.bytes);
            for value in &mut values {
                *value = (((*value << shift) as i64) >> shift) as u64;
            }
        }
        put(planes, *register, &values, lanes);
    }
}

/// Writes loaded words to a register that may be wider. A 16-bit register stays zero-extended in its plane.
#[inline(always)]
fn put(planes: &mut [Plane], register: DataRegister, values: &[u64; LANES], lanes: u32) {
    match register.planes {
        1 => {
            let mask = if register.bits < 32 { (1 << register.bits) - 1 } else { u32::MAX };
            let mut words = [0u32; LANES];
            for lane in 0..LANES {
                words[lane] = values[lane] as u32 & mask;
            }
            store_lanes(planes, register.slot, &words, lanes);
        }
        2 => store_lanes(planes, register.slot, values, lanes),
        _ => store_lanes(planes, register.slot, &values.map(u128::from), lanes),
    }
}

/// # Safety
/// `pointer` must lead to `bytes` readable bytes, aligned if `is_ordered`.
#[inline(always)]
unsafe fn read_word(pointer: *mut u8, bytes: u8, is_ordered: bool) -> u64 {
    use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::Acquire};
    // SAFETY: the caller's.
    unsafe {
        match (bytes, is_ordered) {
            (1, false) => u64::from(pointer.read()),
            (2, false) => u64::from(pointer.cast::<u16>().read_unaligned()),
            (4, false) => u64::from(pointer.cast::<u32>().read_unaligned()),
            (_, false) => pointer.cast::<u64>().read_unaligned(),
            (1, true) => u64::from(AtomicU8::from_ptr(pointer).load(Acquire)),
            (2, true) => u64::from(AtomicU16::from_ptr(pointer.cast()).load(Acquire)),
            (4, true) => u64::from(AtomicU32::from_ptr(pointer.cast()).load(Acquire)),
            (_, true) => AtomicU64::from_ptr(pointer.cast()).load(Acquire),
        }
    }
}

/// # Safety
/// Every lane of the region must have the store's bytes there, writable.
#[inline(always)]
unsafe fn store_region(planes: &[Plane], store: &Store, region: &Region, addresses: &[u64; LANES]) {
    use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::Release};
    let at = |lane: usize| region.at(addresses, lane);
    let lanes = region.lanes;
    // A wider register gives its low half, which does not lie in one plane.
    if store.bytes == 4 && store.count == 1 && store.registers[0].planes == 1 && !store.is_volatile {
        let source = u32::view(planes, store.registers[0].slot);
        if lanes == u32::MAX && is_run(addresses, 4) {
            // SAFETY: 32 neighbouring words of the region.
            unsafe { std::ptr::copy_nonoverlapping(source.as_ptr().cast(), at(0), 4 * LANES) };
        } else {
            for lane in lanes_of(lanes) {
                // SAFETY: the caller's.
                unsafe { at(lane).cast::<u32>().write_unaligned(source[lane]) };
            }
        }
        return;
    }
    for (element, register) in store.registers[..usize::from(store.count)].iter().enumerate() {
        let offset = element * usize::from(store.bytes);
        for lane in lanes_of(lanes) {
            let pointer = at(lane).wrapping_add(offset);
            let value = match register.planes {
                1 => u64::from(u32::view(planes, register.slot)[lane]),
                2 => u64::view(planes, register.slot)[lane],
                _ => u128::view(planes, register.slot)[lane] as u64,
            };
            // SAFETY: the caller's; ordered stores are aligned, as `check_alignment` saw.
            unsafe {
                match (store.bytes, store.is_volatile) {
                    (1, false) => pointer.write(value as u8),
                    (2, false) => pointer.cast::<u16>().write_unaligned(value as u16),
                    (4, false) => pointer.cast::<u32>().write_unaligned(value as u32),
                    (8, false) => pointer.cast::<u64>().write_unaligned(value),
                    (1, true) => AtomicU8::from_ptr(pointer).store(value as u8, Release),
                    (2, true) => AtomicU16::from_ptr(pointer.cast()).store(value as u16, Release),
                    (4, true) => AtomicU32::from_ptr(pointer.cast()).store(value as u32, Release),
                    (8, true) => AtomicU64::from_ptr(pointer.cast()).store(value, Release),
                    _ => pointer.cast::<u128>().write_unaligned(u128::view(planes, register.slot)[lane]),
                }
            }
        }
    }
}
