// Programs on NVIDIA's device libraries (cooperative groups, CUB, libcu++), whose headers use much that hand-written
// kernels do not. Compiled by
//   nvcc -std=c++17 -ptx -arch=sm_80 libraries.cu -o libraries.ptx
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
#include <cooperative_groups/scan.h>
#include <cub/block/block_radix_sort.cuh>
#include <cub/block/block_scan.cuh>
#include <cuda/atomic>
#include <cuda/barrier>
#include <cuda/pipeline>
namespace cg = cooperative_groups;

// The sum of the values with the same label in the warp, and how many there are.
extern "C" __global__ void labelled_sums(const int* labels, const int* values, int* out) {
    int t = blockIdx.x * blockDim.x + threadIdx.x;
    auto same = cg::labeled_partition(cg::coalesced_threads(), labels[t]);
    out[2 * t] = cg::reduce(same, values[t], cg::plus<int>());
    out[2 * t + 1] = same.size();
}

// In tiles of 8: sums up to each value, and the greatest value before it.
extern "C" __global__ void tile_scans(const int* values, int* out) {
    auto tile = cg::tiled_partition<8>(cg::this_thread_block());
    int t = blockIdx.x * blockDim.x + threadIdx.x;
    int sum = cg::inclusive_scan(tile, values[t]), before = cg::exclusive_scan(tile, values[t], cg::greater<int>());
    out[2 * t] = sum + tile.meta_group_rank();
    out[2 * t + 1] = tile.thread_rank() ? before : tile.shfl_xor(values[t], 0);
}

extern "C" __global__ void radix_sort(unsigned* keys, int* values, int* sums) {
    using Sort = cub::BlockRadixSort<unsigned, 128, 4, int>;
    using Scan = cub::BlockScan<int, 128>;
    __shared__ union {
        Sort::TempStorage sort;
        Scan::TempStorage scan;
    } storage;
    unsigned key[4];
    int value[4], sum[4];
    for (int i = 0; i < 4; i++) {
        key[i] = keys[threadIdx.x * 4 + i];
        value[i] = sum[i] = values[threadIdx.x * 4 + i];
    }
    Sort(storage.sort).Sort(key, value);
    __syncthreads();
    Scan(storage.scan).InclusiveSum(sum, sum);
    for (int i = 0; i < 4; i++) {
        keys[threadIdx.x * 4 + i] = key[i];
        values[threadIdx.x * 4 + i] = value[i];
        sums[threadIdx.x * 4 + i] = sum[i];
    }
}

// Block 0 publishes what the others wait for.
extern "C" __global__ void published(int* count, float* sum, int* flag, int* data) {
    cuda::atomic_ref<int, cuda::thread_scope_device> counter(*count), ready(*flag);
    counter.fetch_add(1, cuda::memory_order_relaxed);
    cuda::atomic_ref<float, cuda::thread_scope_device>(*sum).fetch_add(1.5f);
    if (threadIdx.x) return;
    if (blockIdx.x == 0) {
        *data = 77;
        ready.store(1, cuda::memory_order_release);
    } else {
        while (!ready.load(cuda::memory_order_acquire)) {}
        data[blockIdx.x] = *data + blockIdx.x;
    }
}

// Each round adds a neighbour; the work between arriving and waiting needs nobody.
extern "C" __global__ void split_barrier(int* data, int rounds) {
    using Barrier = cuda::barrier<cuda::thread_scope_block>;
    __shared__ alignas(Barrier) unsigned char storage[sizeof(Barrier)];
    __shared__ int shared[128];
    auto& barrier = *reinterpret_cast<Barrier*>(storage);
    if (threadIdx.x == 0) init(&barrier, blockDim.x);
    __syncthreads();
    int t = threadIdx.x, value = data[blockIdx.x * blockDim.x + t];
    for (int round = 0; round < rounds; round++) {
        shared[t] = value;
        auto token = barrier.arrive();
        value *= 3;
        barrier.wait(std::move(token));
        value += shared[(t + round + 1) % blockDim.x];
        barrier.arrive_and_wait();
    }
    data[blockIdx.x * blockDim.x + t] = value;
}

// Three tiles in flight.
extern "C" __global__ void pipelined(const int* in, int* out, int tiles) {
    constexpr int STAGES = 3;
    __shared__ alignas(16) int tile[STAGES][128];
    __shared__ cuda::pipeline_shared_state<cuda::thread_scope_block, STAGES> state;
    auto block = cg::this_thread_block();
    auto pipeline = cuda::make_pipeline(block, &state);
    int sum = 0;
    for (int now = 0, next = 0; now < tiles; now++) {
        for (; next < tiles && next < now + STAGES; next++) {
            pipeline.producer_acquire();
            cuda::memcpy_async(block, tile[next % STAGES], in + next * 128, cuda::aligned_size_t<16>(512), pipeline);
            pipeline.producer_commit();
        }
        pipeline.consumer_wait();
        sum += tile[now % STAGES][(threadIdx.x * 5 + now) % 128];
        pipeline.consumer_release();
    }
    out[threadIdx.x] = sum;
}

struct Shape {
    __device__ virtual ~Shape() {}
    __device__ virtual float area() const = 0;
};
struct Square : Shape {
    float side;
    __device__ Square(float side) : side(side) {}
    __device__ float area() const override { return side * side; }
};
struct Rectangle : Square {
    float height;
    __device__ Rectangle(float width, float height) : Square(width), height(height) {}
    __device__ float area() const override { return side * height; }
};

// Lanes of a warp have objects of different classes.
extern "C" __global__ void virtual_functions(float* out) {
    Shape* shape = threadIdx.x % 3 ? new Square(threadIdx.x) : new Rectangle(threadIdx.x, 2);
    out[threadIdx.x] = shape->area();
    delete shape;
}

// The greatest value, by the loop that many programs have: it ends without an atomic operation where there is no more to do.
extern "C" __global__ void greatest(float* most, const float* values) {
    int* address = (int*)most;
    float value = values[threadIdx.x];
    for (int old = *address; __int_as_float(old) < value;) {
        int assumed = old;
        old = atomicCAS(address, assumed, __float_as_int(value));
        if (old == assumed) break;
    }
}

// A tile of several warps, which meet in shared memory that the system keeps for cooperative groups.
extern "C" __global__ void wide_tiles(const int* values, int* out) {
    __shared__ cg::block_tile_memory<256> memory;
    auto block = cg::this_thread_block(memory);
    auto tile = cg::tiled_partition<64>(block);
    out[block.thread_rank()] = cg::reduce(tile, values[block.thread_rank()], cg::plus<int>()) + tile.meta_group_rank();
}
