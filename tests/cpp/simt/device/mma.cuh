// csrc/device/mma.cuh for a CPU.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <array>
#include <type_traits>

#include "cpu/float16.h"
#include "device/barrier.cuh"

namespace varattn::device {

// Half of a pair of elements.
template <class T>
float element_of(uint32_t pair, int half) {
    const auto bits = static_cast<uint16_t>(pair >> 16 * half);
    using Number = std::conditional_t<std::is_same_v<T, __nv_bfloat16>, BFloat16, Half>;
    return to_float(std::bit_cast<Number>(bits));
}
template <class T>
uint32_t pack2(float low, float high) {
    using Number = std::conditional_t<std::is_same_v<T, __nv_bfloat16>, BFloat16, Half>;
    return std::bit_cast<uint16_t>(from_float<Number>(low)) |
           uint32_t{std::bit_cast<uint16_t>(from_float<Number>(high))} << 16;
}

// What each lane of this warp gives, to all of them: until the next exchange.
template <class Given>
const std::array<Given, 32>& exchange(const Given& given) {
    static std::unordered_map<int, std::array<Given, 32>> of_warp;
    std::array<Given, 32>& all = of_warp[simt::Cluster::current_cluster->fiber() / 32];
    __syncwarp();
    all[lane_id()] = given;
    __syncwarp();
    return all;
}

template <class T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    const auto& all = exchange(std::array<uint32_t, 6>{a[0], a[1], a[2], a[3], b0, b1});
    const int lane = lane_id();
    for (int x = 0; x < 4; ++x) {
        const int group = lane / 4, high_row = x / 2, column = lane % 4 * 2 + x % 2;
        for (int k = 0; k < 16; ++k)
            d[x] += element_of<T>(all[group * 4 + k % 8 / 2][high_row + k / 8 * 2], k % 2) *
                    element_of<T>(all[column * 4 + k % 8 / 2][4 + k / 8], k % 2);
    }
}

inline void ldmatrix_x4(uint32_t (&r)[4], uint32_t row) {
    const auto& rows = exchange(row);
    for (int i = 0; i < 4; ++i)
        std::memcpy(&r[i], at_shared(rows[i * 8 + lane_id() / 4]) + lane_id() % 4 * 4, 4);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t row) {
    const auto& rows = exchange(row);
    for (int i = 0; i < 4; ++i) {
        uint16_t pair[2];
        for (int half = 0; half < 2; ++half)
            std::memcpy(&pair[half], at_shared(rows[i * 8 + lane_id() % 4 * 2 + half]) + lane_id() / 4 * 2, 2);
        std::memcpy(&r[i], pair, 4);
    }
}

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row) { ldmatrix_x4(r, smem_address(row)); }
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) { ldmatrix_x4_trans(r, smem_address(row)); }

inline uint32_t transpose_8x8(uint32_t pair) {
    const auto& all = exchange(pair);
    const int row = lane_id() / 4, column = lane_id() % 4 * 2;
    auto element = [&](int r, int c) { return all[r * 4 + c / 2] >> c % 2 * 16 & 0xffff; };
    return element(column, row) | element(column + 1, row) << 16;
}

}  // namespace varattn::device
