//! What all drivers have in common: each claim about the trait `Driver`, shown by each implementation.
//!
//! `Emulated` runs in this process. `Cuda` takes the path of a GPU user: each claim in a process of its own, which finds
//! the emulator as `libcuda.so.1`, or with `ENGINE_TEST_LIBCUDA=system` the machine's own driver and GPU. So does `Cust`,
//! with the feature of that name.

#![cfg(target_os = "linux")]

mod capture;
mod faults;
mod launches;
#[path = "../common/libcuda.rs"]
mod libcuda;
mod memory;
mod modules;
mod requirements;
mod streams;

use engine::driver::{Cuda, DeviceFacts, Driver, Emulated, Error, Function, LaunchConfig, Params, Stream};

const KERNELS: &str = include_str!("kernels.ptx");

/// One test per claim and driver.
macro_rules! claims {
    ($($file:ident: $($claim:ident)*;)*) => {
        mod emulated {
            $($(
                #[test]
                fn $claim() {
                    crate::$file::$claim(&super::Emulated::new(super::DeviceFacts::default()));
                }
            )*)*
        }

        mod cuda {
            $($(
                #[test]
                fn $claim() {
                    crate::libcuda::with_libcuda(concat!("cuda::", stringify!($claim)), || {
                        crate::$file::$claim(&super::Cuda::open(0).expect("libcuda has a device"));
                    });
                }
            )*)*
        }

        #[cfg(feature = "cust")]
        mod cust {
            $($(
                #[test]
                fn $claim() {
                    crate::libcuda::with_libcuda(concat!("cust::", stringify!($claim)), || {
                        crate::$file::$claim(&engine::driver::Cust::open(0).expect("libcuda has a device"));
                    });
                }
            )*)*
        }
    };
}

claims! {
    memory:
        the_device_has_limits_that_kernels_need
        memory_holds_what_is_written
        copies_and_fills_reach_what_they_name_and_no_more
        memory_info_follows_allocations
        what_does_not_fit_is_refused_with_figures
        addresses_of_nothing_are_refused
        transfers_of_nothing_are_no_work;
    modules:
        what_is_not_ptx_is_refused_with_name_and_line
        a_kernel_that_is_not_there_is_named
        each_module_has_variables_of_its_own
        an_unloaded_module_has_no_functions
        the_facts_of_a_function_are_those_of_its_ptx;
    launches:
        arguments_of_all_sizes_arrive
        launches_beyond_the_limits_are_refused_and_harmless
        a_cooperative_launch_runs_all_blocks_at_once
        dynamic_shared_memory_goes_beyond_48_kib
        threads_that_ask_for_different_shared_memory_all_get_theirs
        many_threads_share_one_driver;
    faults:
        a_wild_write_is_an_error_and_the_device_is_lost
        a_trap_is_an_error_and_the_device_is_lost;
    streams:
        work_on_a_stream_is_done_in_order
        a_stream_waits_for_an_event_of_another
        events_tell_the_time_between_them
        an_event_that_was_never_recorded_has_no_time
        what_was_destroyed_is_refused
        the_default_stream_stays;
    capture:
        captured_work_runs_when_its_graph_does
        a_graph_writes_the_bytes_of_the_capture
        a_graph_runs_on_any_stream_any_number_of_times
        events_in_a_graph_are_recorded_by_each_replay
        a_graph_keeps_what_it_uses
        a_graph_can_be_part_of_another
        a_captured_stream_refuses_to_be_waited_for_and_goes_on
        other_work_goes_on_during_a_capture
        captures_begin_and_end_once;
}

/// Words on the device.
pub fn upload(driver: &dyn Driver, words: &[u32]) -> u64 {
    let bytes = bytemuck::cast_slice(words);
    let address = driver.allocate(bytes.len() as u64).expect("there is memory");
    driver.write(Stream::DEFAULT, address, bytes).expect("it is ours");
    driver.synchronize(Stream::DEFAULT).expect("it is written");
    address
}

/// `count` words from the device, once the work of the stream is done.
#[track_caller]
pub fn download(driver: &dyn Driver, stream: Stream, address: u64, count: usize) -> Vec<u32> {
    let mut words = vec![0; count];
    driver.read(stream, address, bytemuck::cast_slice_mut(&mut words)).expect("it can be read");
    words
}

/// A kernel of [`KERNELS`].
#[track_caller]
pub fn kernel(driver: &dyn Driver, name: &str) -> Function {
    let module = driver.load("kernels.ptx", KERNELS).expect("the module loads");
    driver.function(module, name).expect("the kernel is there")
}

/// Adds `step` to each of `count` words.
#[track_caller]
pub fn add(driver: &dyn Driver, stream: Stream, step: Function, address: u64, count: u32, value: u32) {
    let params = Params::new().u64(address).u32(value);
    driver.launch(stream, step, LaunchConfig::linear(count, count), &params).expect("the launch fits");
}

/// Asserts that a call was refused with these words in its message, which is one line.
#[track_caller]
pub fn assert_refused<T: std::fmt::Debug>(result: Result<T, Error>, words: &[&str]) {
    let message = result.expect_err("it is refused").to_string();
    assert!(!message.contains('\n'), "{message:?}");
    for word in words {
        assert!(message.contains(word), "{message:?} lacks {word:?}");
    }
}
