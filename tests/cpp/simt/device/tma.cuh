// csrc/device/tma.cuh for a CPU: copies arrive some time later, in any order. Tensor maps are made by encode_tensor_map().
#pragma once

#include <cuda.h>

#include <array>

#include "device/barrier.cuh"

namespace varattn::device {

// What this encoder leaves in a CUtensorMap: a view of 16-bit elements.
struct TensorView {
    const char* data;
    uint64_t dims[5], strides[5];  // in elements, in bytes
    uint32_t box[5];
};
static_assert(sizeof(TensorView) <= sizeof(CUtensorMap));

inline CUresult encode_tensor_map(CUtensorMap* map, CUtensorMapDataType, cuuint32_t rank, void* data,
                                  const cuuint64_t* dims, const cuuint64_t* strides, const cuuint32_t* box,
                                  const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle swizzle,
                                  CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
    TensorView view{static_cast<const char*>(data), {1, 1, 1, 1, 1}, {2}, {1, 1, 1, 1, 1}};
    bool ok = swizzle == CU_TENSOR_MAP_SWIZZLE_128B && reinterpret_cast<uintptr_t>(data) % 16 == 0 && box[0] == 64;
    for (cuuint32_t i = 0; i < rank; ++i) {
        view.dims[i] = dims[i];
        view.box[i] = box[i];
        if (i > 0) view.strides[i] = strides[i - 1];
        ok &= dims[i] >= 1 && box[i] >= 1 && box[i] <= 256 && (i == 0 || strides[i - 1] % 16 == 0);
    }
    std::memcpy(map, &view, sizeof view);
    return ok ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

// Copies a box, zeros where it has no elements, and counts its bytes at the barrier.
inline void copy_box(char* shared, uint32_t to, const TensorView& view, Mbarrier& barrier, std::array<int, 5> first) {
    constexpr uint32_t kLine = 128;
    uint32_t lines = 1;
    for (int i = 1; i < 5; ++i)
        lines *= view.box[i];
    for (uint32_t line = 0; line < lines; ++line) {
        uint64_t at = static_cast<int64_t>(first[0]) * 2;
        bool exists = true;
        uint32_t rest = line;
        for (int i = 1; i < 5; ++i) {
            const int64_t x = int64_t{first[i]} + rest % view.box[i];
            rest /= view.box[i];
            exists &= 0 <= x && x < static_cast<int64_t>(view.dims[i]);
            at += x * view.strides[i];
        }
        for (uint32_t chunk = 0; chunk < 8; ++chunk) {  // of 8 elements
            const uint32_t address = to + line * kLine + chunk * 16;
            char* const target = shared + ((address ^ (address >> 7 & 7) << 4) - kSharedBase);
            for (uint32_t i = 0; i < 8; ++i) {
                const int64_t x = first[0] + int64_t{chunk} * 8 + i;
                if (exists && x < static_cast<int64_t>(view.dims[0]))
                    std::memcpy(target + i * 2, view.data + at + chunk * 16 + i * 2, 2);
                else
                    std::memset(target + i * 2, 0, 2);
            }
        }
    }
    barrier.update(0, -static_cast<int64_t>(lines) * kLine);
}

inline void load_box(uint32_t to, const CUtensorMap* map, uint64_t* bar, std::array<int, 5> first) {
    if (to % 128 != 0) throw std::runtime_error("a box that does not begin with a line");
    TensorView view;
    std::memcpy(&view, map, sizeof view);
    auto& cluster = *simt::Cluster::current_cluster;
    char* const shared = cluster.shared(cluster.block());
    cluster.later([=, &barrier = mbarriers.at(bar)] { copy_box(shared, to, view, barrier, first); });
}

inline constexpr uint64_t kEvictNormal = 0, kEvictFirst = 1;

inline void tma_prefetch_descriptor(const CUtensorMap*) {}
inline void tma_load_3d(uint32_t to, const CUtensorMap* map, uint64_t* bar, int c0, int c1, int c2) {
    load_box(to, map, bar, {c0, c1, c2, 0, 0});
}
inline void tma_load_4d(uint32_t to, const CUtensorMap* map, uint64_t* bar, uint64_t, int c0, int c1, int c2, int c3) {
    load_box(to, map, bar, {c0, c1, c2, c3, 0});
}
inline void tma_load_5d(uint32_t to, const CUtensorMap* map, uint64_t* bar, uint64_t, int c0, int c1, int c2, int c3,
                        int c4) {
    load_box(to, map, bar, {c0, c1, c2, c3, c4});
}
inline void tma_prefetch_4d(const CUtensorMap*, int, int, int, int) {}
inline void tma_prefetch_5d(const CUtensorMap*, int, int, int, int, int) {}

}  // namespace varattn::device
