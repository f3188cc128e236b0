// The one table that decides which kernel serves which device and shape, and how its work is cut.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "varattn/types.h"

namespace varattn {

enum KernelId : int32_t {
    kKernelCpu = 0,
    kKernelSm90D64 = 1,
    kKernelSm90D128 = 2,
    kKernelSm90D256 = 3,
    kKernelPortableD64 = 4,
    kKernelPortableD128 = 5,
    kKernelPortableD256 = 6,
    kNumKernels,
};

struct KernelConfig {
    KernelId id;
    const char* name;
    DeviceType device;
    int32_t min_compute_capability, max_compute_capability;  // half-open
    bool takes_float32, takes_16bit;
    int32_t max_head_dim;      // head_dim and head_dim_v: multiples of 8 up to here; smaller ones are zero-filled
    int32_t max_group;         // query heads for each KV head
    int32_t tile_rows;         // M of prefill mode
    int32_t tile_rows_decode;  // M of decode mode, 0: none
    int32_t block_n;
    int32_t ctas_per_sm;
    bool folds_segments;  // with batch invariance it takes tiles in splits, see layout.h
};

inline constexpr int32_t kAnyCapability = 1 << 20, kAnyGroup = 1 << 20;

// The first row that takes the device and the shape serves it.
inline constexpr KernelConfig kKernelTable[kNumKernels] = {
    // id, name, device, capability, f32, 16 bit, max D, max G, M, M decode, N, CTAs/SM, folds segments
    {kKernelCpu, "cpu", DeviceType::kCpu, 0, kAnyCapability, true, true, 512, kAnyGroup, 64, 0, 64, 1, false},
    // The copy engine's box of Q holds whole tokens, so a group must fit a tile. At head dim 256 the accumulators leave
    // registers for blocks of 64 keys, and none for a decode mode.
    {kKernelSm90D64, "sm90_d64", DeviceType::kCuda, 90, 100, false, true, 64, 128, 192, 16, 128, 1, true},
    {kKernelSm90D128, "sm90_d128", DeviceType::kCuda, 90, 100, false, true, 128, 128, 128, 16, 128, 1, true},
    {kKernelSm90D256, "sm90_d256", DeviceType::kCuda, 90, 100, false, true, 256, 128, 128, 0, 64, 1, true},
    // N halves at head dim 256 to stay within the 99 KiB of shared memory of compute capability 8.6 and 8.9.
    {kKernelPortableD64, "portable_d64", DeviceType::kCuda, 80, kAnyCapability, false, true, 64, kAnyGroup, 64, 0, 64,
     2, false},
    {kKernelPortableD128, "portable_d128", DeviceType::kCuda, 80, kAnyCapability, false, true, 128, kAnyGroup, 64, 0,
     64, 2, false},
    {kKernelPortableD256, "portable_d256", DeviceType::kCuda, 80, kAnyCapability, false, true, 256, kAnyGroup, 64, 0,
     32, 1, false},
};

// What schedule.h takes for granted: blocks are powers of two, and a decode tile is not larger than others.
constexpr bool suits_schedule() {
    for (const KernelConfig& row : kKernelTable)
        if ((row.block_n & (row.block_n - 1)) != 0 || row.tile_rows_decode > row.tile_rows) return false;
    return true;
}
static_assert(suits_schedule());

inline constexpr int32_t kCpuWorkers = 16;  // what CPU plans are balanced for; fixed, so that they are reproducible

inline constexpr int32_t kDefaultNumSplits = 64;  // num_splits = 0
inline constexpr int32_t kMaxNumSplits = 256;

bool takes_device(const KernelConfig& row, const Device& device);
bool takes_dtype(const KernelConfig& row, DType dtype);

// The row that serves the device and shape, or null.
const KernelConfig* find_kernel(const Device& device, DType dtype, int32_t group, int32_t head_dim, int32_t head_dim_v);

}  // namespace varattn
