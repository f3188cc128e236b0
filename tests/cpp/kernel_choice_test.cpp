// What VARATTN_KERNEL does: ctest runs each test in a process of its own, with the variable set to the test's name.
#include <gtest/gtest.h>

#include "core/kernel_table.h"
#include "core/layout.h"
#include "varattn/varattn.hpp"

namespace varattn {
namespace {

constexpr Device kHopper{DeviceType::kCuda, 90, 132}, kAmpere{DeviceType::kCuda, 80, 108};
constexpr Device kTuring{DeviceType::kCuda, 75, 40}, kCpu{DeviceType::kCpu, 0, 16};

std::string name_of(const Device& device, int32_t head_dim) {
    const KernelConfig* kernel = find_kernel(device, DType::kBFloat16, 4, head_dim, head_dim);
    return kernel ? kernel->name : "";
}

PlanOptions one_head() {
    PlanOptions options;
    options.num_heads_q = options.num_heads_kv = 1;
    options.head_dim = 64;
    return options;
}

TEST(KernelChoice, unset) {
    EXPECT_EQ(name_of(kAmpere, 64), "portable_d64");
    EXPECT_EQ(name_of(kAmpere, 72), "portable_d128");
    EXPECT_EQ(name_of(kAmpere, 256), "portable_d256");
    EXPECT_EQ(name_of(kAmpere, 264), "");
    EXPECT_EQ(name_of(kHopper, 128), "sm90_d128");
    EXPECT_EQ(find_kernel(kHopper, DType::kBFloat16, 129, 128, 128)->id, kKernelPortableD128);
    EXPECT_EQ(name_of(kTuring, 64), "");
    EXPECT_EQ(name_of(kCpu, 512), "cpu");
    EXPECT_EQ(find_kernel(kAmpere, DType::kFloat32, 4, 64, 64), nullptr);
    const KernelConfig* mixed = find_kernel(kAmpere, DType::kFloat16, 4, 64, 128);
    ASSERT_NE(mixed, nullptr);
    EXPECT_EQ(mixed->id, kKernelPortableD128);
}

TEST(KernelChoice, portable) {
    EXPECT_EQ(name_of(kHopper, 64), "portable_d64");
    EXPECT_EQ(name_of(kHopper, 128), "portable_d128");
    EXPECT_EQ(name_of(kCpu, 64), "cpu");
}

TEST(KernelChoice, portable_d256) {
    EXPECT_EQ(name_of(kHopper, 64), "portable_d256");
    EXPECT_EQ(name_of(kAmpere, 64), "portable_d256");
}

// Sizes follow from the kernel that serves the head dim, not from the head dim.
TEST(KernelChoice, sm90_d128) {
    EXPECT_EQ(name_of(kHopper, 64), "sm90_d128");
    EXPECT_EQ(name_of(kAmpere, 64), "");
    PlanOptions options = one_head();
    options.batch_invariant = true;
    options.num_splits = 8;
    EXPECT_EQ(workspace_layout(make_plan_config(kHopper, options)).kept_floats, 128 * (128 + 8));
    options.num_splits = 0;
    EXPECT_EQ(workspace_layout(make_plan_config(kHopper, options)).kept_floats, 0);
}

TEST(KernelChoice, nothing) {
    EXPECT_EQ(name_of(kHopper, 64), "");
    EXPECT_EQ(name_of(kCpu, 64), "cpu");
    EXPECT_THROW(make_plan_config(kHopper, one_head()), Error);
}

TEST(KernelTable, RowsAreInOrderAndConsistent) {
    for (int id = 0; id < kNumKernels; ++id) {
        const KernelConfig& row = kKernelTable[id];
        EXPECT_EQ(row.id, id);
        EXPECT_GT(row.tile_rows, 0);
        EXPECT_GE(row.tile_rows, row.tile_rows_decode);
        EXPECT_GT(row.block_n, 0);
        EXPECT_GT(row.ctas_per_sm, 0);
    }
}

}  // namespace
}  // namespace varattn
