// The device planner's sort: a stable counting sort of tiles by order key, in which a tile counts as many items as it has.
#pragma once

#include "cuda/planner_lengths.cuh"

namespace varattn::planner {

constexpr int kSortedTiles = 4096;  // at a time
static_assert(kSortedTiles + 2 * kArrivalCounters <= 0xffff, "items of as many tiles are counted in 16 bits");

// A warp's tiles are neighbours.
struct ItemCounts {
    // Of a key: items in each warp's tiles, then in those of earlier warps. Columns are padded against bank conflicts.
    alignas(16) uint16_t of_warp[kNumOrderKeys][kWarps + 8];
    uint16_t earlier[kSortedTiles];  // items of a tile's key in earlier tiles of its warp

    // Of 32 tiles, for each of so many warps: a power of two.
    __device__ static int32_t rounds_log2(int32_t num_tiles, int num_warps) {
        return num_tiles <= 32 * num_warps ? 0 : log2_floor((num_tiles - 1) / (32 * num_warps)) + 1;
    }
    // This warp's among these tiles.
    __device__ static Range tiles_of_warp(Range tiles, int num_warps) {
        const int32_t each = 32 << rounds_log2(tiles.end - tiles.begin, num_warps),
                      begin = min_of<int32_t>(tiles.begin + threadIdx.x / 32 * each, tiles.end);
        return {begin, min_of(begin + each, tiles.end)};
    }

    // By so many threads, of which this is number `thread`.
    __device__ void clear(int thread, int num_threads) {
        auto* words = reinterpret_cast<uint4*>(of_warp);
        for (int i = thread; i < int(sizeof of_warp / sizeof(uint4)); i += num_threads)
            words[i] = uint4{};
    }

    // A warp counts its next 32 tiles; `tile` is this thread's, `num_items` 0 if there is none.
    __device__ void add(int32_t tile, int32_t key, int32_t num_items) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        const uint32_t same_key = __match_any_sync(~0u, num_items > 0 ? key : -1),  // lanes
            lower = same_key & ((1u << lane) - 1);
        const int32_t more = max_of(num_items - 1, 0);
        const uint32_t most = __reduce_max_sync(~0u, static_cast<uint32_t>(more));
        int32_t before = __popc(lower), all = __popc(same_key);
        constexpr int kBits = 4;  // at a time
        for (int bits = 0; most >> bits != 0; bits += kBits)
#pragma unroll
            for (int bit = bits; bit < bits + kBits; ++bit) {
                const uint32_t has_bit = __ballot_sync(~0u, more >> bit & 1);
                before += __popc(has_bit & lower) << bit;
                all += __popc(has_bit & same_key) << bit;
            }
        const int32_t of_earlier_calls = num_items > 0 ? of_warp[key][warp] : 0;
        __syncwarp();
        if (num_items > 0) {
            earlier[tile] = static_cast<uint16_t>(of_earlier_calls + before);
            if (lower == 0) of_warp[key][warp] = static_cast<uint16_t>(of_earlier_calls + all);
        }
        __syncwarp();
    }

    // Turns the key's counts into those of earlier warps, and returns their sum.
    template <int kNumWarps>
    __device__ int32_t sum_up(int key) {
        constexpr int kParts = kNumWarps / 8;
        auto* column = reinterpret_cast<uint4*>(of_warp[key]);
        uint4 parts[kParts];
#pragma unroll
        for (int i = 0; i < kParts; ++i)
            parts[i] = column[i];
        uint32_t sum = 0;
        auto scan_pair = [&](uint32_t& pair) {
            const uint32_t counts = pair;
            pair = sum * 0x10001 + (counts << 16);
            sum += (counts & 0xffff) + (counts >> 16);
        };
#pragma unroll
        for (int i = 0; i < kParts; ++i) {
            scan_pair(parts[i].x);
            scan_pair(parts[i].y);
            scan_pair(parts[i].z);
            scan_pair(parts[i].w);
            column[i] = parts[i];
        }
        return static_cast<int32_t>(sum);
    }
};

}  // namespace varattn::planner
