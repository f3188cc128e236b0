// Runs device code on a CPU: the threads of a cluster, or of a grid, are fibers, switched at collectives of warps, blocks and
// the cluster. Between these, warps take turns in random order, and rest, so that a missing barrier shows; and so does what they
// leave to others, as copies. Collectives take full warps and blocks only.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#ifndef __VECTOR_TYPES_H__  // of CUDA, whose headers have all of these
#define __device__
#define __forceinline__ inline
struct uint4 {
    uint32_t x, y, z, w;
};
#endif
#define threadIdx varattn::simt::thread_index()
#define blockIdx varattn::simt::block_index()
#define gridDim varattn::simt::grid_dim()

namespace varattn::simt {

struct Index {
    unsigned x;
};

enum class Collective {
    kNone,
    kShuffle,
    kShuffleUp,
    kShuffleXor,
    kMatch,
    kAny,
    kAll,
    kBallot,
    kAdd,
    kMax,
    kSyncWarp,
    kSync,
    kSyncAnd,
    kSyncOr,
    kCondition,
    kCluster
};

class Cluster {
public:
    // `shared` is the shared memory of each block.
    Cluster(int num_threads, std::vector<char*> shared, uint64_t seed, std::function<void()> body)
        : body_(std::move(body)),
          random_(seed),
          shared_(std::move(shared)),
          num_threads_(num_threads),
          slow_one_in_(4 << random_() % 3 * 2),
          fibers_(shared_.size() * num_threads) {}

    // Throws if threads wait for each other for ever, or at different collectives, and what a thread throws.
    void run() {
        current_cluster = this;
        constexpr size_t kStackBytes = 256 << 10;
        for (Fiber& f : fibers_) {
            f.stack = std::make_unique_for_overwrite<char[]>(kStackBytes);
            getcontext(&f.context);
            f.context.uc_stack.ss_sp = f.stack.get();
            f.context.uc_stack.ss_size = kStackBytes;
            f.context.uc_link = &scheduler_;
            makecontext(&f.context, [] { current_cluster->enter(); }, 0);
        }
        std::vector<int> warps(fibers_.size() / 32), pauses(warps.size());
        std::iota(warps.begin(), warps.end(), 0);
        while (!std::all_of(fibers_.begin(), fibers_.end(), [](const Fiber& f) { return f.done; })) {
            pause_some(pauses);
            ++round_;
            bool progress = false, some_rest = !later_.empty() || round_ < all_rested_;
            do_some_later();
            std::shuffle(warps.begin(), warps.end(), random_);
            for (const int warp : warps) {
                if (pauses[warp] > 0) {
                    --pauses[warp];
                    some_rest = true;
                    continue;
                }
                for (int turns = 1 + random_() % 40; turns > 0 && run_warp(warp); --turns)
                    progress = true;
            }
            for (size_t block = 0; block < shared_.size(); ++block)
                progress |= finish_block(&fibers_[block * num_threads_]);
            progress |= finish_cluster() | finish_conditions();
            if (thrown_) std::rethrow_exception(thrown_);
            if (!progress && !some_rest) throw std::runtime_error("threads wait for each other for ever");
        }
        current_cluster = nullptr;
    }

    // Called by a fiber: waits for the others, returns the collective's result.
    uint64_t wait(Collective collective, uint64_t value, int argument) {
        Fiber& f = fibers_[current_];
        f.waits_for = collective;
        f.value = value;
        f.argument = argument;
        swapcontext(&f.context, &scheduler_);
        return f.result;
    }

    // The same, until it holds.
    void wait_until(std::function<bool()> condition) {
        fibers_[current_].condition = std::move(condition);
        wait(Collective::kCondition, 0, 0);
    }

    // Called by a fiber, too: it goes on.
    void arrive() { ++fibers_[current_].arrivals; }
    // At the block's named barrier, for which so many threads arrive. Returns how often it had been complete.
    int arrive_at(int barrier, int num_threads) {
        NamedBarrier& it = named_[{static_cast<int>(block()), barrier}];
        const int before = it.times_complete;
        if (++it.arrived == num_threads) it = {0, before + 1};
        return before;
    }
    void wait_at(int barrier, int times_complete) {
        const NamedBarrier& it = named_[{static_cast<int>(block()), barrier}];
        wait_until([&it, times_complete] { return it.times_complete > times_complete; });
    }
    // Called by a fiber: does nothing for so many rounds.
    void rest(int rounds) {
        const int64_t end = round_ + rounds;
        all_rested_ = std::max(all_rested_, end);
        wait_until([this, end] { return round_ >= end; });
    }
    // Does it after some rounds: few as a rule, sometimes many.
    void later(std::function<void()> action) {
        const int rounds = random_() % slow_one_in_ ? random_() % 8 : random_() % 400;
        later_.push_back({rounds, std::move(action)});
    }

    static inline Cluster* current_cluster = nullptr;
    unsigned thread() const { return current_ % num_threads_; }
    unsigned block() const { return current_ / num_threads_; }
    unsigned num_blocks() const { return shared_.size(); }
    int fiber() const { return current_; }
    char* shared(int block) const { return shared_[block]; }

private:
    struct Fiber {
        ucontext_t context;
        std::unique_ptr<char[]> stack;
        bool done = false;
        Collective waits_for = Collective::kNone;
        uint64_t value = 0, result = 0;
        int argument = 0;
        int arrivals = 0;  // at barriers of the cluster
        std::function<bool()> condition;
    };

    struct NamedBarrier {
        int arrived = 0, times_complete = 0;
    };

    struct Later {
        int rounds;
        std::function<void()> action;
    };

    void enter() {
        try {
            body_();
        } catch (...) {
            thrown_ = std::current_exception();
        }
        fibers_[current_].done = true;
    }

    void do_some_later() {
        for (size_t i = 0; i < later_.size();)
            if (later_[i].rounds-- > 0) {
                ++i;
            } else {
                later_[i].action();
                later_.erase(later_.begin() + i);
            }
    }

    static bool is_of_warp(Collective c) { return Collective::kNone < c && c < Collective::kSync; }

    // Now and then a warp, or all of a block, does nothing for some rounds.
    void pause_some(std::vector<int>& pauses) {
        if (random_() % 4) return;
        const int warps_of_block = num_threads_ / 32, warp = random_() % pauses.size(), rounds = 1 + random_() % 20;
        const bool all = random_() % 2;
        const int begin = all ? warp / warps_of_block * warps_of_block : warp,
                  end = all ? begin + warps_of_block : warp + 1;
        std::fill(pauses.begin() + begin, pauses.begin() + end, rounds);
    }

    // Runs its threads that can run, then the collective that all of them wait for. False if there was nothing to do.
    bool run_warp(int warp) {
        Fiber* const lanes = &fibers_[warp * 32];
        bool progress = false;
        const int first = random_() % 32;
        for (int i = 0; i < 32; ++i) {
            const int lane = (first + i) % 32;
            if (lanes[lane].done || lanes[lane].waits_for != Collective::kNone) continue;
            current_ = warp * 32 + lane;
            swapcontext(&scheduler_, &lanes[lane].context);
            progress = true;
        }
        auto waits_here = [](const Fiber& f) { return !f.done && is_of_warp(f.waits_for); };
        if (!std::all_of(lanes, lanes + 32, waits_here)) return progress;
        finish_warp(lanes);
        return true;
    }

    void finish_warp(Fiber* lanes) {
        const Collective collective = lanes[0].waits_for;
        for (int i = 0; i < 32; ++i) {
            Fiber& f = lanes[i];
            if (f.waits_for != collective) throw std::runtime_error("a warp's threads wait at different collectives");
            const int other = f.argument;
            f.result = 0;
            if (collective == Collective::kShuffle) f.result = lanes[other % 32].value;
            if (collective == Collective::kShuffleUp) f.result = lanes[i >= other ? i - other : i].value;
            if (collective == Collective::kShuffleXor) f.result = lanes[i ^ other].value;
            if (collective == Collective::kAll) f.result = 1;
            for (int j = 0; j < 32; ++j) {
                if (collective == Collective::kMatch) f.result |= uint64_t{lanes[j].value == f.value} << j;
                if (collective == Collective::kAny) f.result |= lanes[j].value;
                if (collective == Collective::kAll) f.result &= lanes[j].value;
                if (collective == Collective::kBallot) f.result |= uint64_t{lanes[j].value != 0} << j;
                if (collective == Collective::kMax) f.result = std::max(f.result, lanes[j].value);
                if (collective == Collective::kAdd) f.result = static_cast<uint32_t>(f.result + lanes[j].value);
            }
        }
        for (int i = 0; i < 32; ++i)
            lanes[i].waits_for = Collective::kNone;
    }

    bool finish_block(Fiber* fibers) {
        Fiber* const end = fibers + num_threads_;
        const Fiber* const first = std::find_if(fibers, end, [](const Fiber& f) { return !f.done; });
        if (first == end) return false;
        const Collective collective = first->waits_for;
        uint64_t all = 1, any = 0;
        for (const Fiber* f = fibers; f < end; ++f) {
            if (f->done) continue;
            if (f->waits_for < Collective::kSync || f->waits_for > Collective::kSyncOr) return false;
            if (f->waits_for != collective) throw std::runtime_error("a block's threads wait at different barriers");
            all &= f->value;
            any |= f->value;
        }
        for (Fiber* f = fibers; f < end; ++f) {
            f->result = collective == Collective::kSyncAnd ? all : any;
            f->waits_for = Collective::kNone;
        }
        return true;
    }

    bool finish_conditions() {
        bool progress = false;
        for (Fiber& f : fibers_) {
            if (f.done || f.waits_for != Collective::kCondition || !f.condition()) continue;
            f.waits_for = Collective::kNone;
            progress = true;
        }
        return progress;
    }

    // Those that wait for the cluster go on if all others have arrived as often.
    bool finish_cluster() {
        int least = std::numeric_limits<int>::max();
        for (const Fiber& f : fibers_)
            if (!f.done) least = std::min(least, f.arrivals);
        bool progress = false;
        for (Fiber& f : fibers_) {
            if (f.done || f.waits_for != Collective::kCluster || f.arrivals > least) continue;
            f.waits_for = Collective::kNone;
            progress = true;
        }
        return progress;
    }

    std::function<void()> body_;
    std::mt19937_64 random_;
    std::vector<char*> shared_;
    int num_threads_, slow_one_in_, current_ = 0;
    int64_t round_ = 0, all_rested_ = 0;
    ucontext_t scheduler_;
    std::vector<Fiber> fibers_;
    std::map<std::pair<int, int>, NamedBarrier> named_;  // by block and number
    std::vector<Later> later_;
    std::exception_ptr thrown_;
};

inline Index thread_index() { return {Cluster::current_cluster->thread()}; }
inline Index block_index() { return {Cluster::current_cluster->block()}; }
inline Index grid_dim() { return {Cluster::current_cluster->num_blocks()}; }

template <class T>
T collective(Collective c, T value, int argument = 0) {
    uint64_t in = 0;
    std::memcpy(&in, &value, sizeof value);
    const uint64_t out = Cluster::current_cluster->wait(c, in, argument);
    std::memcpy(&value, &out, sizeof value);
    return value;
}

inline uint64_t together(Collective c, uint64_t value) { return Cluster::current_cluster->wait(c, value, 0); }

}  // namespace varattn::simt

template <class T>
T __shfl_sync(unsigned, T value, int lane) {
    return varattn::simt::collective(varattn::simt::Collective::kShuffle, value, lane);
}
template <class T>
T __shfl_up_sync(unsigned, T value, int distance) {
    return varattn::simt::collective(varattn::simt::Collective::kShuffleUp, value, distance);
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int lanes) {
    return varattn::simt::collective(varattn::simt::Collective::kShuffleXor, value, lanes);
}
inline uint32_t __match_any_sync(unsigned, int32_t value) {
    return varattn::simt::together(varattn::simt::Collective::kMatch, static_cast<uint32_t>(value));
}
inline bool __any_sync(unsigned, bool value) { return varattn::simt::together(varattn::simt::Collective::kAny, value); }
inline bool __all_sync(unsigned, bool value) { return varattn::simt::together(varattn::simt::Collective::kAll, value); }
inline uint32_t __ballot_sync(unsigned, bool value) {
    return varattn::simt::together(varattn::simt::Collective::kBallot, value);
}
template <class T>
T __reduce_add_sync(unsigned, T value) {
    return static_cast<T>(varattn::simt::together(varattn::simt::Collective::kAdd, static_cast<uint32_t>(value)));
}
inline uint32_t __reduce_max_sync(unsigned, uint32_t value) {
    return varattn::simt::together(varattn::simt::Collective::kMax, value);
}
inline void __syncwarp() { varattn::simt::together(varattn::simt::Collective::kSyncWarp, 0); }
inline void __syncthreads() { varattn::simt::together(varattn::simt::Collective::kSync, 0); }
inline bool __syncthreads_and(bool value) {
    return varattn::simt::together(varattn::simt::Collective::kSyncAnd, value);
}
inline bool __syncthreads_or(bool value) { return varattn::simt::together(varattn::simt::Collective::kSyncOr, value); }

inline int __popc(uint32_t x) { return __builtin_popcount(x); }
inline int __ffs(uint32_t x) { return __builtin_ffs(static_cast<int>(x)); }
template <class T>
T atomicAdd(T* p, T value) {
    const T old = *p;
    *p += value;
    return old;
}
inline uint32_t atomicOr(uint32_t* p, uint32_t value) {
    const uint32_t old = *p;
    *p |= value;
    return old;
}
inline uint32_t atomicMax(uint32_t* p, uint32_t value) {
    const uint32_t old = *p;
    *p = std::max(old, value);
    return old;
}

namespace varattn::device {  // as in device/cluster.cuh and device/barrier.cuh

inline void cluster_arrive() { simt::Cluster::current_cluster->arrive(); }
inline void cluster_wait() { simt::together(simt::Collective::kCluster, 0); }
inline void named_barrier_arrive(int barrier, int num_threads) {
    simt::Cluster::current_cluster->arrive_at(barrier, num_threads);
}
inline void named_barrier_sync(int barrier, int num_threads) {
    auto& cluster = *simt::Cluster::current_cluster;
    cluster.wait_at(barrier, cluster.arrive_at(barrier, num_threads));
}

class Inbox {
public:
    void open(uint32_t bytes) { bytes_ = bytes; }
    template <class T>
    void send(T* to, T value, int rank) {
        *there(to, rank) = value;
        there(this, rank)->bytes_ -= sizeof value;
    }
    void wait() {
        simt::Cluster::current_cluster->wait_until([this] { return bytes_ == 0; });
    }

private:
    template <class T>
    static T* there(T* p, int rank) {
        const auto& cluster = *simt::Cluster::current_cluster;
        return reinterpret_cast<T*>(cluster.shared(rank) +
                                    (reinterpret_cast<char*>(p) - cluster.shared(cluster.block())));
    }
    int64_t bytes_;
};

}  // namespace varattn::device
