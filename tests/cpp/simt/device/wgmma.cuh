// csrc/device/wgmma.cuh for a CPU: products are done when they are committed, or when they are waited for.
#pragma once

#include <deque>

#include "device/descriptor.h"
#include "device/mma.cuh"

namespace varattn::device {

// What a thread has asked for. The rows of `a` that are in registers are those of its quad.
struct Product {
    float* d;
    int num_columns;
    uint64_t a_shared, b;
    const uint32_t* a;  // or null
    bool accumulates, is_bf16;
};
struct Products {
    std::deque<std::vector<Product>> groups;  // committed, but not done
    std::vector<Product> next;
    size_t num_groups = 0, num_done = 0;  // so far
};
// `b` of the products of a group, (16, columns), which all threads of a warp read at the same time.
struct Operands {
    size_t num_done = ~size_t{0};
    std::vector<std::vector<float>> b;
};
inline std::unordered_map<int, Products> products_of_fiber;
inline std::unordered_map<int, Operands> operands_of_warp;

// Before another grid, whose groups are counted anew.
inline void forget_products() {
    products_of_fiber.clear();
    operands_of_warp.clear();
}

inline Products& my_products() { return products_of_fiber[simt::Cluster::current_cluster->fiber()]; }

inline float shared_element(uint64_t descriptor, int line, int element, bool line_is_k, bool is_bf16) {
    const uint32_t start = (descriptor & 0x3fff) << 4, leading = (descriptor >> 16 & 0x3fff) << 4,
                   stride = (descriptor >> 32 & 0x3fff) << 4;
    uint32_t address = start + line / 8 * stride + line % 8 * 128 + element % 64 * 2;
    if (line_is_k) address += element / 64 * leading;
    address ^= (address >> 7 & 7) << 4;
    uint16_t bits;
    std::memcpy(&bits, at_shared(address), 2);
    return is_bf16 ? element_of<__nv_bfloat16>(bits, 0) : element_of<__half>(bits, 0);
}

inline std::vector<float> load_b(const Product& product) {
    std::vector<float> b;
    for (int k = 0; k < 16; ++k)
        for (int column = 0; column < product.num_columns; ++column)
            b.push_back(product.a ? shared_element(product.b, k, column, true, product.is_bf16)
                                  : shared_element(product.b, column, k, false, product.is_bf16));
    return b;
}

inline void multiply(const Product& product, const std::array<const uint32_t*, 4>& a_of_quad, const float* b) {
    const int thread = threadIdx.x % 128, lane = thread % 32;
    for (int high = 0; high < 2; ++high) {
        const int row = thread / 32 * 16 + lane / 4 + high * 8;
        float a[16];
        for (int k = 0; k < 16; ++k) {
            if (!product.a) {
                a[k] = shared_element(product.a_shared, row, k, false, product.is_bf16);
                continue;
            }
            const uint32_t pair = a_of_quad[k % 8 / 2][k / 8 * 2 + high];
            a[k] = product.is_bf16 ? element_of<__nv_bfloat16>(pair, k % 2) : element_of<__half>(pair, k % 2);
        }
        for (int i = high * 2; i < product.num_columns / 2; i += i % 2 ? 3 : 1) {
            const int column = i / 4 * 8 + lane % 4 * 2 + i % 2;
            float sum = product.accumulates ? product.d[i] : 0.f;
            for (int k = 0; k < 16; ++k)
                sum += a[k] * b[k * product.num_columns + column];
            product.d[i] = sum;
        }
    }
}

// The same in all threads of a warp.
inline uint32_t some_number(size_t n) {
    uint64_t x = (n * 1000 + simt::Cluster::current_cluster->fiber() / 32) * 0x9e3779b97f4a7c15;
    x = (x ^ x >> 31) * 0xbf58476d1ce4e5b9;
    return static_cast<uint32_t>(x >> 32);
}

// The first group of each thread of the warp.
inline void do_group() {
    __syncwarp();
    const int fiber = simt::Cluster::current_cluster->fiber();
    Products& mine = my_products();
    if (const uint32_t random = some_number(mine.num_done); random % 8 == 0)
        simt::Cluster::current_cluster->rest(random / 8 % 64);
    const std::vector<Product>& group = mine.groups.front();
    Operands& operands = operands_of_warp[fiber / 32];
    if (operands.num_done != mine.num_done) {  // the first thread to be here
        operands = {mine.num_done, {}};
        for (const Product& product : group)
            operands.b.push_back(load_b(product));
    }
    for (size_t i = 0; i < group.size(); ++i) {
        std::array<const uint32_t*, 4> a;
        for (int lane = 0; lane < 4; ++lane)
            a[lane] = products_of_fiber.at((fiber & ~3) + lane).groups.front().at(i).a;
        multiply(group[i], a, operands.b[i].data());
    }
    __syncwarp();
    mine.groups.pop_front();
    ++mine.num_done;
}

inline void wgmma_fence() {}
inline void wgmma_commit() {
    Products& mine = my_products();
    mine.groups.push_back(std::move(mine.next));
    mine.next.clear();
    const bool at_once = some_number(mine.num_groups++) % 2;
    while (at_once && !mine.groups.empty())
        do_group();
}
template <int kPending>
void wgmma_wait() {
    while (my_products().groups.size() > kPending)
        do_group();
}
template <int kCount>
void pin_registers(float (&)[kCount]) {}
template <int kCount>
void pin_registers(uint32_t (&)[kCount]) {}

template <class T, int kRegs>
void wgmma_ss(float (&d)[kRegs], uint64_t a, uint64_t b, int accumulate) {
    my_products().next.push_back({d, kRegs * 2, a, b, nullptr, accumulate != 0, std::is_same_v<T, __nv_bfloat16>});
}
template <class T, int kRegs>
void wgmma_rs(float (&d)[kRegs], const uint32_t* a, uint64_t b, int accumulate) {
    my_products().next.push_back({d, kRegs * 2, 0, b, a, accumulate != 0, std::is_same_v<T, __nv_bfloat16>});
}

}  // namespace varattn::device
