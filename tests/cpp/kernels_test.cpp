// The CUDA kernels' code, its threads run on a CPU, against a naive reference. Copies arrive in any order, and tensor core
// products read their operands as late as they may.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "problem.h"

// Defines the words that the next are written in.
#include "simt/cuda_words.h"

#include "portable/kernel.cuh"
#include "sm90/kernel.cuh"
#include "sm90/launch_params.h"

namespace varattn {
namespace {

using test::Answer;
using test::Problem;
using test::ProblemSpec;
using test::Random;

// Runs body(shared memory of the block) in every thread.
template <class SharedMemory, class Body>
void run_grid(int num_blocks, int num_threads, uint64_t seed, const Body& body) {
    struct alignas(1024) Shared {
        char bytes[sizeof(SharedMemory) + 2048];
    };
    std::vector<Shared> shared(num_blocks);
    std::vector<char*> of_blocks;
    for (Shared& s : shared) {
        std::memset(s.bytes, 0xff, sizeof s.bytes);  // NaN
        of_blocks.push_back(s.bytes + device::kSharedBase);
    }
    device::mbarriers.clear();
    device::forget_products();
    device::async_copies_of_fiber.clear();
    simt::Cluster grid(num_threads, of_blocks, seed, [&] {
        const auto& cluster = *simt::Cluster::current_cluster;
        body(cluster.shared(cluster.block()));
    });
    grid.run();
}

template <class T, int kDim, bool kFoldsSegments>
void run_hopper(const sm90::LaunchParams& p, uint64_t seed) {
    using C = sm90::Config<T, kDim, kFoldsSegments>;
    run_grid<sm90::SharedMemory<C>>(p.a.config.num_ctas, C::kThreads, seed,
                                    [&](char* shared) { sm90::attend<C>(p, shared); });
}
template <class T, int kDim>
void run_hopper(const AttentionParams& params, uint64_t seed) {
    const sm90::LaunchParams p = sm90::make_launch_params(params, device::encode_tensor_map);
    if (folds_segments(params.config))
        run_hopper<T, kDim, true>(p, seed);
    else
        run_hopper<T, kDim, false>(p, seed);
}
template <class T, int kDim>
void run_portable(const AttentionParams& p, uint64_t seed) {
    using C = portable::Config<T, kDim>;
    run_grid<portable::SharedMemory<C>>(p.config.num_ctas, portable::kThreads, seed, [&](char* shared) {
        portable::attend<C>(p, *reinterpret_cast<portable::SharedMemory<C>*>(shared - device::kSharedBase));
    });
}
template <class T>
void run(const AttentionParams& p, uint64_t seed) {
    switch (p.config.kernel) {
        case kKernelSm90D64: return run_hopper<T, 64>(p, seed);
        case kKernelSm90D128: return run_hopper<T, 128>(p, seed);
        case kKernelSm90D256: return run_hopper<T, 256>(p, seed);
        case kKernelPortableD64: return run_portable<T, 64>(p, seed);
        case kKernelPortableD128: return run_portable<T, 128>(p, seed);
        case kKernelPortableD256: return run_portable<T, 256>(p, seed);
    }
    FAIL() << "kernel " << p.config.kernel;
}

// As mha_varlen_cuda does it.
void mha_varlen(const AttentionParams& given, uint64_t seed) {
    check_attention_params(given, DeviceType::kCuda);
    const AttentionParams params = with_keys_that_exist(given);
    if (params.total_q == 0) return;
    if (params.config.dtype == static_cast<int32_t>(DType::kBFloat16))
        run<__nv_bfloat16>(params, seed);
    else
        run<__half>(params, seed);
}

// Probabilities are rounded to 16 bits, so what counts is the size of what is added up.
void expect_close(const Problem& p, const Answer& got, const Answer& want, const Answer& size) {
    const double step = p.c_options.dtype == DType::kFloat16 ? 1.6e-3 : 1.2e-2;
    const int64_t dim = p.c_options.head_dim_v, row = dim * p.c_options.num_heads_q;
    for (size_t i = 0; i < want.out.size(); ++i)
        ASSERT_TRUE(std::fabs(got.out[i] - want.out[i]) <= step * size.out[i] + 1e-6)
            << "row " << i / row << ", head " << i % row / dim << ", dim " << i % dim << ": got " << got.out[i]
            << ", want " << want.out[i];
    for (size_t i = 0; i < want.lse.size(); ++i)
        ASSERT_TRUE(got.lse[i] == want.lse[i] ||
                    std::fabs(got.lse[i] - want.lse[i]) <= 1e-4 * (1 + std::fabs(want.lse[i])))
            << "lse " << i << ": got " << got.lse[i] << ", want " << want.lse[i];
}

void expect_right(const ProblemSpec& spec, uint64_t seed) {
    SCOPED_TRACE("VARATTN_SEED=" + std::to_string(seed));
    Random random(seed);
    Problem problem(spec, random);
    test::Plan plan(problem.config, problem.lengths());
    const Answer answer =
        problem.attend_by(problem.params(), plan, 0, [&](const AttentionParams& p) { mha_varlen(p, seed); });
    expect_close(problem, answer, problem.reference(), problem.reference(true));
}

ProblemSpec draw_spec(Random& random) {
    ProblemSpec s;
    PlanOptions& o = s.options;
    s.device = {DeviceType::kCuda, random.pick({80, 90, 90}), random.integer(1, 4)};
    o.dtype = random.pick({DType::kFloat16, DType::kBFloat16});
    o.num_heads_kv = random.pick({1, 1, 2});
    o.num_heads_q = o.num_heads_kv * random.pick({1, 2, 4, 5, 8, 16, 100});
    o.head_dim = random.pick({64, 64, 128, 128, 256, 40, 72, 192});
    if (random.chance(0.2)) o.head_dim_v = random.pick({64, 128, 24});
    o.causal = random.chance(0.6);
    if (random.chance(0.2)) o.window_left = random.integer(0, 300);
    if (random.chance(0.2)) o.window_right = random.integer(0, 100);
    o.num_splits = random.pick({0, 0, 1, 2, 64});
    o.batch_invariant = random.chance(0.2);
    const int32_t n = random.integer(0, 6);
    for (int32_t i = 0; i < n; ++i) {
        s.q_lens.push_back(random.pick({0, 1, 1, 1, 4, random.integer(1, 60)}));
        s.kv_lens.push_back(random.pick({0, 1, random.integer(1, 300), random.integer(1, 1400), s.q_lens.back()}));
    }
    if (o.batch_invariant && o.num_splits > 1 && n > 0) s.q_lens[0] = 1, s.kv_lens[0] = random.integer(4096, 9000);
    s.page_size = random.pick({0, 0, 16, 16, 128, 1, 24, 64, 256});
    s.packed_with_seqused = random.chance(0.5);
    s.rows_before = random.chance(0.1) ? random.integer(1, 5) : 0;
    s.rows_after = random.chance(0.3) ? random.integer(1, 20) : 0;
    s.softcap = random.chance(0.2) ? 10.f : 0.f;
    s.with_sinks = random.chance(0.3);
    return s;
}

// Small enough to take a second or so.
ProblemSpec random_spec(Random& random) {
    for (;;) {
        const ProblemSpec s = draw_spec(random);
        double products = 0;
        for (size_t i = 0; i < s.q_lens.size(); ++i)
            products += double(std::max(s.q_lens[i], 16)) * s.kv_lens[i] * s.options.num_heads_q * s.options.head_dim;
        if (products < 1e8) return s;
    }
}

TEST(KernelsOnCpu, RandomCallsEqualTheReference) {
    const int cases = test::num_cases(25);
    for (int i = 0; i < cases && !testing::Test::HasFailure(); ++i) {
        const uint64_t seed = test::first_seed() + i;
        Random random(seed);
        expect_right(random_spec(random), seed);
    }
}

ProblemSpec small_spec(int compute_capability) {
    ProblemSpec s;
    s.device = {DeviceType::kCuda, compute_capability, 2};
    s.options.num_heads_q = 4;
    s.options.num_heads_kv = 2;
    s.options.head_dim = 128;
    s.options.causal = true;
    s.q_lens = {1, 40, 3};
    s.kv_lens = {300, 200, 150};
    s.page_size = 16;
    return s;
}

TEST(KernelsOnCpu, WildPagesAreZeros) {
    Random random(test::first_seed());
    for (const int32_t wild : {-1, INT32_MIN, INT32_MAX, 1 << 20}) {
        Problem p(small_spec(random.pick({80, 90})), random);
        for (const int32_t seq : {0, 1}) {
            const int32_t entry = random.integer(0, p.spec.kv_lens[seq] / 16 - 1);
            int32_t& page = p.block_table[seq * p.table_stride + entry];
            for (int32_t row = 0; row < 16; ++row)
                for (int32_t h = 0; h < 2; ++h)
                    for (int32_t d = 0; d < 128; ++d) {
                        p.k.set(page, row, h, d, 0.f);
                        p.v.set(page, row, h, d, 0.f);
                    }
        }
        const Answer want = p.reference(), size = p.reference(true);
        for (int32_t& page : p.block_table) {
            const bool is_zero =
                0 <= page && page < p.num_pages && p.k.get(page, 0, 0, 0) == 0 && p.k.get(page, 1, 0, 1) == 0;
            if (is_zero) page = wild;
        }
        test::Plan plan(p.config, p.lengths());
        const Answer got = p.attend_by(p.params(), plan, kStatusPageId,
                                       [](const AttentionParams& given) { mha_varlen(given, test::first_seed()); });
        expect_close(p, got, want, size);
    }
}

TEST(KernelsOnCpu, ACacheWithoutPagesHasNoKeys) {
    Random random(test::first_seed());
    Problem p(small_spec(random.pick({80, 90})), random);
    std::fill(p.block_table.begin(), p.block_table.end(), 0);
    test::Plan plan(p.config, p.lengths());
    AttentionParams params = p.params();
    params.num_pages = 0;
    const Answer got = p.attend_by(params, plan, kStatusKeysPastEnd,
                                   [](const AttentionParams& given) { mha_varlen(given, test::first_seed()); });
    EXPECT_TRUE(std::all_of(got.out.begin(), got.out.end(), [](double x) { return x == 0; }));
    EXPECT_TRUE(std::all_of(got.lse.begin(), got.lse.end(), [](double x) { return x == -INFINITY; }));
}

TEST(KernelsOnCpu, AForeignPlanComputesNothing) {
    Random random(test::first_seed());
    Problem p(small_spec(random.pick({80, 90})), random);
    PlanConfig other = p.config;
    other.window_left = 5;
    test::Plan plan(other, p.lengths());
    AttentionParams params = p.params();
    std::vector<uint8_t> workspace(workspace_size(p.config));
    const std::vector<uint8_t> before = p.out.bytes();
    params.plan = plan.data();
    params.workspace = workspace.data();
    mha_varlen(params, test::first_seed());
    EXPECT_EQ(plan.header().status, kStatusForeignPlan | differing_fields(p.config, other) << kStatusFirstField);
    EXPECT_EQ(p.out.bytes(), before);
    EXPECT_TRUE(std::all_of(workspace.begin(), workspace.end(), [](uint8_t x) { return x == 0; }));
}

// A warpgroup of the first may be done while the other still waits for copies that come late.
TEST(KernelsOnCpu, DecodesThatPrefillsFollow) {
    const int cases = test::num_cases(30);
    for (int i = 0; i < cases && !testing::Test::HasFailure(); ++i) {
        const uint64_t seed = test::first_seed() + i;
        Random random(seed);
        ProblemSpec s;
        s.device = {DeviceType::kCuda, 90, 2};
        s.options.num_heads_q = s.options.num_heads_kv = 1;
        s.options.head_dim = random.pick({64, 64, 64, 128});
        s.options.num_splits = 1;
        s.q_lens = {1, 1, 30, 30, 30, 30};
        s.kv_lens = {random.integer(600, 1400), random.integer(600, 1400), 300, 200, 300, 200};
        s.page_size = 128;
        expect_right(s, seed);
    }
}

}  // namespace
}  // namespace varattn
