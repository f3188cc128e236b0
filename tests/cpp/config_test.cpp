// make_plan_config: what it refuses, what it resolves; buffer sizes; status words.
#include <functional>

#include "support.h"

namespace varattn {
namespace {

using test::expect_error;

constexpr Device kHopper{DeviceType::kCuda, 90, 132};

PlanOptions good_options() {
    PlanOptions o;
    o.num_heads_q = 32;
    o.num_heads_kv = 8;
    o.head_dim = 128;
    o.max_seqs = 16;
    o.max_total_q = 4096;
    return o;
}

struct BadOption {
    const char* message;
    ErrorCode code;
    std::function<void(Device&, PlanOptions&)> change;
};

constexpr ErrorCode kInvalid = ErrorCode::kInvalidArgument, kUnsupported = ErrorCode::kUnsupported;

const BadOption kBadOptions[] = {
    {"dtype: got 3; takes 0 (float32)", kInvalid, [](auto&, auto& o) { o.dtype = static_cast<DType>(3); }},
    {"dtype: got -1; takes", kInvalid, [](auto&, auto& o) { o.dtype = static_cast<DType>(-1); }},
    {"dtype: got float32; takes float16 or bfloat16", kUnsupported, [](auto&, auto& o) { o.dtype = DType::kFloat32; }},
    {"num_heads_q: got 0; takes 1 to", kInvalid, [](auto&, auto& o) { o.num_heads_q = 0; }},
    {"num_heads_q: got -8; takes 1 to", kInvalid, [](auto&, auto& o) { o.num_heads_q = -8; }},
    {"num_heads_q: got 1073741824; takes 1 to", kInvalid, [](auto&, auto& o) { o.num_heads_q = 1 << 30; }},
    {"num_heads_q: got 30; takes a multiple of num_heads_kv = 8", kInvalid, [](auto&, auto& o) { o.num_heads_q = 30; }},
    {"num_heads_q: got 4; takes a multiple of num_heads_kv = 8", kInvalid, [](auto&, auto& o) { o.num_heads_q = 4; }},
    {"num_heads_kv: got 0; takes 1 to", kInvalid, [](auto&, auto& o) { o.num_heads_kv = 0; }},
    {"head_dim: got 0; takes a multiple of 8 up to 256", kInvalid, [](auto&, auto& o) { o.head_dim = 0; }},
    {"head_dim: got -8; takes a multiple of 8 up to 256", kInvalid, [](auto&, auto& o) { o.head_dim = -8; }},
    {"head_dim: got 100; takes a multiple of 8 up to 256", kInvalid, [](auto&, auto& o) { o.head_dim = 100; }},
    {"head_dim: got 264; takes a multiple of 8 up to 256", kUnsupported, [](auto&, auto& o) { o.head_dim = 264; }},
    {"head_dim_v: got 20; takes a multiple of 8 up to 256", kInvalid, [](auto&, auto& o) { o.head_dim_v = 20; }},
    {"head_dim_v: got 512; takes a multiple of 8 up to 256", kUnsupported, [](auto&, auto& o) { o.head_dim_v = 512; }},
    {"head_dim_v: got -1; takes a multiple of 8", kInvalid, [](auto&, auto& o) { o.head_dim_v = -1; }},
    {"window_size[0]: got -2; takes a number of keys, or -1", kInvalid, [](auto&, auto& o) { o.window_left = -2; }},
    {"window_size[1]: got -7; takes a number of keys, or -1", kInvalid, [](auto&, auto& o) { o.window_right = -7; }},
    {"num_splits: got -1; takes 0 to 256", kInvalid, [](auto&, auto& o) { o.num_splits = -1; }},
    {"num_splits: got 257; takes 0 to 256", kInvalid, [](auto&, auto& o) { o.num_splits = 257; }},
    {"sm_margin: got -1; takes 0 to 131", kInvalid, [](auto&, auto& o) { o.sm_margin = -1; }},
    {"sm_margin: got 132; takes 0 to 131", kInvalid, [](auto&, auto& o) { o.sm_margin = 132; }},
    {"max_seqs: got -1; takes 0 to", kInvalid, [](auto&, auto& o) { o.max_seqs = -1; }},
    {"max_seqs: got 2147483647; takes 0 to", kInvalid, [](auto&, auto& o) { o.max_seqs = 0x7fffffff; }},
    {"max_total_q: got -1; takes 0 to", kInvalid, [](auto&, auto& o) { o.max_total_q = -1; }},
    {"max_total_q: got 134217729; takes 0 to 134217728", kInvalid,
     [](auto&, auto& o) { o.max_total_q = (1 << 27) + 1; }},
    {"max_seqs, max_total_q, num_heads_kv: got 16777216, 4096, 512; takes", kInvalid,
     [](auto&, auto& o) { o.max_seqs = 1 << 24, o.num_heads_q = o.num_heads_kv = 512; }},
    {"device: got CUDA device of compute capability 7.5; takes", kUnsupported,
     [](auto& d, auto&) { d.compute_capability = 75; }},
    {"device.num_sms: got 0; takes", kInvalid, [](auto& d, auto&) { d.num_sms = 0; }},
    {"head_dim: got 520; takes a multiple of 8 up to 512", kUnsupported,
     [](auto& d, auto& o) { d = cpu_device(), o.head_dim = 520; }},
    {"head_dim: got 12; takes a multiple of 8 up to 512", kInvalid,
     [](auto& d, auto& o) { d = cpu_device(), o.head_dim = 12; }},
    {"head_dim: got 576; takes a multiple of 8 up to 256 (for MLA's 576 and 512, take FlashMLA", kUnsupported,
     [](auto&, auto& o) { o.head_dim = 576, o.head_dim_v = 512; }},
    {"sm_margin: got 16; takes 0 to 15", kInvalid, [](auto& d, auto& o) { d = cpu_device(), o.sm_margin = 16; }},
};

TEST(Config, EveryBadOptionIsRefusedByName) {
    for (const BadOption& bad : kBadOptions) {
        Device device = kHopper;
        PlanOptions options = good_options();
        bad.change(device, options);
        expect_error(bad.code, std::string("make_plan_config: ") + bad.message,
                     [&] { make_plan_config(device, options); });
    }
}

TEST(Config, ErrorsNameTheCaller) {
    PlanOptions options = good_options();
    options.head_dim = 264;
    expect_error(kUnsupported, "mha_varlen: head_dim: got 264",
                 [&] { make_plan_config(kHopper, options, "mha_varlen"); });
}

TEST(Config, ResolvesOptions) {
    PlanOptions o = good_options();
    PlanConfig c = make_plan_config(kHopper, o);
    const KernelConfig& kernel = kKernelTable[c.kernel];
    EXPECT_EQ(c.head_dim_v, 128);
    EXPECT_EQ(c.window_left, -1);
    EXPECT_EQ(c.window_right, -1);
    EXPECT_EQ(c.num_splits, kDefaultNumSplits);
    EXPECT_EQ(c.num_ctas, 132 * kernel.ctas_per_sm);
    EXPECT_EQ(c.tile_rows, kernel.tile_rows);
    EXPECT_EQ(c.tile_rows_decode, kernel.tile_rows_decode);
    EXPECT_EQ(c.block_n, kernel.block_n);
    EXPECT_STREQ(kernel_name(c), kernel.name);

    o.causal = true;
    o.window_right = 5;
    o.window_left = kMaxLength;
    o.sm_margin = 131;
    o.num_splits = 1;
    c = make_plan_config(kHopper, o);
    EXPECT_EQ(c.window_right, 0);
    EXPECT_EQ(c.window_left, -1);
    EXPECT_EQ(c.num_ctas, kernel.ctas_per_sm);
    EXPECT_EQ(c.num_splits, 1);

    o.causal = false;
    o.window_left = kMaxLength - 1;
    o.window_right = 0x7fffffff;
    o.num_splits = kMaxNumSplits;
    c = make_plan_config(kHopper, o);
    EXPECT_EQ(c.window_left, kMaxLength - 1);
    EXPECT_EQ(c.window_right, -1);
    EXPECT_EQ(c.num_splits, kMaxNumSplits);

    o.batch_invariant = true;
    c = make_plan_config(kHopper, o);
    EXPECT_EQ(c.num_splits, kMaxNumSplits);
    EXPECT_EQ(c.batch_invariant, 1);
    o.num_splits = 0;
    EXPECT_EQ(make_plan_config(kHopper, o).num_splits, 1);
    o.num_splits = 2;
    for (const Device& device : {cpu_device(), Device{DeviceType::kCuda, 80, 108}}) {  // their kernels fold nothing
        o.sm_margin = 0;
        c = make_plan_config(device, o);
        EXPECT_EQ(c.num_splits, 1);
        EXPECT_EQ(c.batch_invariant, 1);
        c.num_splits = 2;
        expect_error(kInvalid, "plan_size: config", [&] { plan_size(c); });
    }
}

TEST(Config, CausalIsAWindowOfZeroToTheRight) {
    PlanOptions causal = good_options(), window = good_options();
    causal.causal = true;
    window.window_right = 0;
    EXPECT_EQ(differing_fields(make_plan_config(kHopper, causal), make_plan_config(kHopper, window)), 0u);
}

TEST(Config, SizesAreBoundedByTheGpuNotTheBatch) {
    PlanOptions o = good_options();
    o.max_seqs = o.max_total_q = 1;
    const int64_t small = workspace_size(make_plan_config(kHopper, o));
    o.max_seqs = o.max_total_q = 100000;
    EXPECT_EQ(workspace_size(make_plan_config(kHopper, o)), small);
    o.num_splits = 1;
    const auto counters = static_cast<int64_t>(sizeof(QueueState) + kArrivalCounters * sizeof(uint32_t));
    EXPECT_EQ(workspace_size(make_plan_config(kHopper, o)), counters);
    o.max_seqs = o.max_total_q = 0;
    EXPECT_GE(plan_size(make_plan_config(kHopper, o)), static_cast<int64_t>(sizeof(PlanHeader)));
}

TEST(Config, WorkspaceOfAServingStepIsSmall) {
    PlanOptions o = good_options();
    o.num_heads_q = 32;
    o.num_heads_kv = 8;
    o.head_dim = 128;
    o.head_dim_v = 0;
    o.num_splits = 32;
    o.max_seqs = o.max_total_q = 1024;
    EXPECT_LE(workspace_size(make_plan_config(kHopper, o)), 40 << 20);
}

// So that one workspace serves several configs in turn: what must be zero between launches lies where no config puts
// partial results.
TEST(Config, CountersHaveOnePlaceInEveryWorkspace) {
    PlanOptions o = good_options();
    for (int32_t heads : {1, 2, 8, 100, 5000, 20000})
        for (int32_t sms : {1, 16, 132, 2000}) {
            o.num_heads_q = o.num_heads_kv = heads;
            const PlanConfig c = make_plan_config({DeviceType::kCuda, 90, sms}, o);
            const TileShape shape = tile_shape(c);
            const WorkspaceLayout l = workspace_layout(c);
            EXPECT_EQ(l.arrivals, static_cast<int64_t>(sizeof(QueueState)));
            EXPECT_EQ(l.partial_lse, l.arrivals + kArrivalCounters * 4);
            for (const bool decode : {false, true}) {
                const int32_t pieces = max_slots(c, decode);
                if (pieces < 2) continue;
                EXPECT_LE((split_tile_of(shape, decode, pieces - 2) + 1) * heads, kArrivalCounters);
                const int32_t rows = decode ? c.tile_rows_decode : c.tile_rows;
                EXPECT_LE(partial_row_of(c, shape, decode, 0) + pieces * rows, l.partial_rows);
            }
        }
}

TEST(Config, SizesOfTheLargestCapacitiesDoNotOverflow) {
    PlanOptions o = good_options();
    o.num_heads_q = 128;
    o.num_heads_kv = 1;
    o.max_seqs = kMaxSeqs;
    o.max_total_q = kMaxPackedRows / 128;
    const PlanConfig c = make_plan_config(kHopper, o);
    EXPECT_GT(max_items(c), kMaxSeqs);
    EXPECT_GT(plan_size(c), int64_t{max_items(c)} * 64);
}

TEST(Config, ConfigsThatTheLibraryDidNotMakeAreRefused) {
    const PlanConfig good = make_plan_config(kHopper, good_options());
    for (int word = 0; word < kPlanConfigWords; ++word) {
        PlanConfig bad = good;
        reinterpret_cast<int32_t*>(&bad)[word] = -2;
        expect_error(kInvalid, "workspace_size: config: got a PlanConfig that this library did not make",
                     [&] { workspace_size(bad); });
    }
    const std::pair<int32_t PlanConfig::*, int32_t> wrong[] = {
        {&PlanConfig::head_dim, 12},
        {&PlanConfig::head_dim_v, 4},
        {&PlanConfig::dtype, static_cast<int32_t>(DType::kFloat32)},
        {&PlanConfig::window_left, kMaxLength},
        {&PlanConfig::num_ctas, kMaxSms + 1},
    };
    for (const auto& [field, value] : wrong) {
        PlanConfig bad = good;
        bad.*field = value;
        expect_error(kInvalid, "workspace_size: config", [&] { workspace_size(bad); });
    }
    expect_error(kInvalid, "plan_size: config", [&] { plan_size(PlanConfig{}); });
}

TEST(Config, PlanForSomethingElseIsRefusedNamingTheField) {
    const PlanConfig plan = make_plan_config(kHopper, good_options());
    EXPECT_NO_THROW(check_plan_config(plan, plan));
    for (int word = 0; word < kPlanConfigWords; ++word) {
        PlanConfig call = plan;
        reinterpret_cast<int32_t*>(&call)[word] += 1;
        expect_error(ErrorCode::kPlanMismatch, std::string("mha_varlen: plan: ") + kPlanConfigFields[word] + ": got ",
                     [&] { check_plan_config(plan, call); });
        EXPECT_EQ(differing_fields(plan, call), 1u << word);
    }
    PlanConfig call = plan;
    call.dtype = static_cast<int32_t>(DType::kFloat16);
    expect_error(ErrorCode::kPlanMismatch, "dtype: got bfloat16; takes a plan made for float16",
                 [&] { check_plan_config(plan, call); });
}

TEST(Status, EveryBitHasASentence) {
    EXPECT_EQ(describe_status(0), "");
    std::string all;
    for (uint32_t bit : {kStatusCuSeqlensQ, kStatusCuSeqlensK, kStatusSequsedK, kStatusKeysPastEnd, kStatusPageId,
                         kStatusRowsPastEnd, kStatusForeignPlan, kStatusNotAPlan}) {
        const std::string sentence = describe_status(bit);
        EXPECT_FALSE(sentence.empty());
        EXPECT_EQ(sentence.back(), '.');
        EXPECT_EQ(all.find(sentence), std::string::npos) << sentence;
        all += sentence;
    }
    EXPECT_NE(describe_status(kStatusForeignPlan | 1u << (kStatusFirstField + 4)).find("head_dim"), std::string::npos);
    EXPECT_NE(describe_status(kStatusPageId | kStatusSequsedK).find("seqused_k"), std::string::npos);
}

#ifdef VARATTN_WITHOUT_CUDA
TEST(NoCuda, EveryEntryPointSaysSo) {
    const PlanConfig c = make_plan_config(kHopper, good_options());
    expect_error(kUnsupported, "cuda_device: device: got CUDA; this build of varattn has no CUDA part",
                 [] { cuda_device(0); });
    expect_error(kUnsupported, "plan: device", [&] { make_plan_cuda(c, {}, nullptr, nullptr); });
    expect_error(kUnsupported, "mha_varlen: device", [&] { mha_varlen_cuda({}, nullptr); });
}
#endif

}  // namespace
}  // namespace varattn
