//! Second names of entry points: old names with the same meaning, and those of programs with a default stream per thread.
//!
//! An alias is a jump: arguments pass through as they are, so no signature is repeated. What handle 0 means to a program
//! with a default stream per thread is settled in [`crate::stream`].

macro_rules! aliases {
    ($($alias:ident = $file:ident::$function:ident;)*) => {
        $(
            #[unsafe(naked)]
            #[unsafe(no_mangle)]
            pub extern "C" fn $alias() {
                #[cfg(target_arch = "x86_64")]
                core::arch::naked_asm!("jmp {}", sym crate::$file::$function);
                #[cfg(target_arch = "aarch64")]
                core::arch::naked_asm!("b {}", sym crate::$file::$function);
            }
        )*
    };
}

aliases! {
    cuCtxCreate = context::cuCtxCreate_v2;
    cuCtxDestroy = context::cuCtxDestroy_v2;
    cuCtxPopCurrent = context::cuCtxPopCurrent_v2;
    cuCtxPushCurrent = context::cuCtxPushCurrent_v2;
    cuDevicePrimaryCtxRelease = context::cuDevicePrimaryCtxRelease_v2;
    cuDevicePrimaryCtxReset = context::cuDevicePrimaryCtxReset_v2;
    cuDevicePrimaryCtxSetFlags = context::cuDevicePrimaryCtxSetFlags_v2;
    cuEventDestroy = event::cuEventDestroy_v2;
    cuEventElapsedTime = event::cuEventElapsedTime_v2;
    cuEventRecordWithFlags_ptsz = event::cuEventRecordWithFlags;
    cuEventRecord_ptsz = event::cuEventRecord;
    cuGraphInstantiate = graph::cuGraphInstantiate_v2;
    cuGraphInstantiateWithParams_ptsz = graph::cuGraphInstantiateWithParams;
    cuGraphLaunch_ptsz = graph::cuGraphLaunch;
    cuGraphUpload_ptsz = graph::cuGraphUpload;
    cuLaunchCooperativeKernel_ptsz = launch::cuLaunchCooperativeKernel;
    cuLaunchHostFunc_ptsz = stream::cuLaunchHostFunc;
    cuLaunchKernelEx_ptsz = launch::cuLaunchKernelEx;
    cuLaunchKernel_ptsz = launch::cuLaunchKernel;
    cuLinkAddData = link::cuLinkAddData_v2;
    cuLinkAddFile = link::cuLinkAddFile_v2;
    cuLinkCreate = link::cuLinkCreate_v2;
    cuMemAllocAsync_ptsz = pool::cuMemAllocAsync;
    cuMemAllocFromPoolAsync_ptsz = pool::cuMemAllocFromPoolAsync;
    cuMemFreeAsync_ptsz = pool::cuMemFreeAsync;
    cuMemHostRegister = memory::cuMemHostRegister_v2;
    cuMemPrefetchAsync_ptsz = pointer::cuMemPrefetchAsync;
    cuMemPrefetchAsync_v2_ptsz = pointer::cuMemPrefetchAsync_v2;
    cuMemcpy2DAsync_v2_ptsz = transfer::cuMemcpy2DAsync_v2;
    cuMemcpy2DUnaligned_v2_ptds = transfer::cuMemcpy2DUnaligned_v2;
    cuMemcpy2D_v2_ptds = transfer::cuMemcpy2D_v2;
    cuMemcpy3DAsync_v2_ptsz = transfer::cuMemcpy3DAsync_v2;
    cuMemcpy3DPeerAsync_ptsz = transfer::cuMemcpy3DPeerAsync;
    cuMemcpy3DPeer_ptds = transfer::cuMemcpy3DPeer;
    cuMemcpy3D_v2_ptds = transfer::cuMemcpy3D_v2;
    cuMemcpyAsync_ptsz = transfer::cuMemcpyAsync;
    cuMemcpyBatchAsync_ptsz = transfer::cuMemcpyBatchAsync;
    cuMemcpyBatchAsync_v2_ptsz = transfer::cuMemcpyBatchAsync_v2;
    cuMemcpyDtoDAsync_v2_ptsz = transfer::cuMemcpyDtoDAsync_v2;
    cuMemcpyDtoD_v2_ptds = transfer::cuMemcpyDtoD_v2;
    cuMemcpyDtoHAsync_v2_ptsz = transfer::cuMemcpyDtoHAsync_v2;
    cuMemcpyDtoH_v2_ptds = transfer::cuMemcpyDtoH_v2;
    cuMemcpyHtoDAsync_v2_ptsz = transfer::cuMemcpyHtoDAsync_v2;
    cuMemcpyHtoD_v2_ptds = transfer::cuMemcpyHtoD_v2;
    cuMemcpyPeerAsync_ptsz = transfer::cuMemcpyPeerAsync;
    cuMemcpyPeer_ptds = transfer::cuMemcpyPeer;
    cuMemcpy_ptds = transfer::cuMemcpy;
    cuMemsetD16Async_ptsz = transfer::cuMemsetD16Async;
    cuMemsetD16_v2_ptds = transfer::cuMemsetD16_v2;
    cuMemsetD2D16Async_ptsz = transfer::cuMemsetD2D16Async;
    cuMemsetD2D16_v2_ptds = transfer::cuMemsetD2D16_v2;
    cuMemsetD2D32Async_ptsz = transfer::cuMemsetD2D32Async;
    cuMemsetD2D32_v2_ptds = transfer::cuMemsetD2D32_v2;
    cuMemsetD2D8Async_ptsz = transfer::cuMemsetD2D8Async;
    cuMemsetD2D8_v2_ptds = transfer::cuMemsetD2D8_v2;
    cuMemsetD32Async_ptsz = transfer::cuMemsetD32Async;
    cuMemsetD32_v2_ptds = transfer::cuMemsetD32_v2;
    cuMemsetD8Async_ptsz = transfer::cuMemsetD8Async;
    cuMemsetD8_v2_ptds = transfer::cuMemsetD8_v2;
    cuStreamAddCallback_ptsz = stream::cuStreamAddCallback;
    cuStreamAttachMemAsync_ptsz = pointer::cuStreamAttachMemAsync;
    cuStreamBeginCaptureToGraph_ptsz = capture::cuStreamBeginCaptureToGraph;
    cuStreamCopyAttributes_ptsz = stream::cuStreamCopyAttributes;
    cuStreamDestroy = stream::cuStreamDestroy_v2;
    cuStreamEndCapture_ptsz = capture::cuStreamEndCapture;
    cuStreamGetAttribute_ptsz = stream::cuStreamGetAttribute;
    cuStreamGetCaptureInfo_ptsz = capture::cuStreamGetCaptureInfo;
    cuStreamGetCaptureInfo_v2_ptsz = capture::cuStreamGetCaptureInfo_v2;
    cuStreamGetCaptureInfo_v3_ptsz = capture::cuStreamGetCaptureInfo_v3;
    cuStreamGetCtx_ptsz = stream::cuStreamGetCtx;
    cuStreamGetCtx_v2_ptsz = stream::cuStreamGetCtx_v2;
    cuStreamGetDevice_ptsz = stream::cuStreamGetDevice;
    cuStreamGetFlags_ptsz = stream::cuStreamGetFlags;
    cuStreamGetId_ptsz = stream::cuStreamGetId;
    cuStreamGetPriority_ptsz = stream::cuStreamGetPriority;
    cuStreamIsCapturing_ptsz = capture::cuStreamIsCapturing;
    cuStreamQuery_ptsz = stream::cuStreamQuery;
    cuStreamSetAttribute_ptsz = stream::cuStreamSetAttribute;
    cuStreamSynchronize_ptsz = stream::cuStreamSynchronize;
    cuStreamUpdateCaptureDependencies_ptsz = capture::cuStreamUpdateCaptureDependencies;
    cuStreamUpdateCaptureDependencies_v2_ptsz = capture::cuStreamUpdateCaptureDependencies_v2;
    cuStreamWaitEvent_ptsz = event::cuStreamWaitEvent;
    cuStreamWaitValue32 = stream_value::cuStreamWaitValue32_v2;
    cuStreamWaitValue32_ptsz = stream_value::cuStreamWaitValue32_v2;
    cuStreamWaitValue32_v2_ptsz = stream_value::cuStreamWaitValue32_v2;
    cuStreamWaitValue64 = stream_value::cuStreamWaitValue64_v2;
    cuStreamWaitValue64_ptsz = stream_value::cuStreamWaitValue64_v2;
    cuStreamWaitValue64_v2_ptsz = stream_value::cuStreamWaitValue64_v2;
    cuStreamWriteValue32 = stream_value::cuStreamWriteValue32_v2;
    cuStreamWriteValue32_ptsz = stream_value::cuStreamWriteValue32_v2;
    cuStreamWriteValue32_v2_ptsz = stream_value::cuStreamWriteValue32_v2;
    cuStreamWriteValue64 = stream_value::cuStreamWriteValue64_v2;
    cuStreamWriteValue64_ptsz = stream_value::cuStreamWriteValue64_v2;
    cuStreamWriteValue64_v2_ptsz = stream_value::cuStreamWriteValue64_v2;
}
