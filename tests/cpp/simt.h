// Runs device code on a CPU: the threads of a block are fibers, switched at warp and block collectives. Between these,
// warps take turns in random order, so that a missing barrier shows. Collectives take full warps and blocks only.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#define __device__
#define __forceinline__ inline
#define threadIdx varattn::simt::thread_index()
#define blockIdx varattn::simt::block_index()

struct uint4 {
    uint32_t x, y, z, w;
};

namespace varattn::simt {

struct Index {
    unsigned x;
};

enum class Collective {
    kNone,
    kShuffle,
    kShuffleUp,
    kMatch,
    kAny,
    kBallot,
    kAdd,
    kMax,
    kSyncWarp,
    kSync,
    kSyncAnd,
    kSyncOr
};

class Block {
public:
    Block(int num_threads, unsigned block, uint64_t seed, std::function<void()> body)
        : body_(std::move(body)), random_(seed), block_(block), fibers_(num_threads) {}

    // Throws if threads wait for each other for ever, or at different collectives.
    void run() {
        current_block = this;
        for (Fiber& f : fibers_) {
            f.stack.resize(64 << 10);
            getcontext(&f.context);
            f.context.uc_stack.ss_sp = f.stack.data();
            f.context.uc_stack.ss_size = f.stack.size();
            f.context.uc_link = &scheduler_;
            makecontext(&f.context, [] { current_block->enter(); }, 0);
        }
        std::vector<int> warps(fibers_.size() / 32);
        std::iota(warps.begin(), warps.end(), 0);
        while (!std::all_of(fibers_.begin(), fibers_.end(), [](const Fiber& f) { return f.done; })) {
            bool progress = false;
            std::shuffle(warps.begin(), warps.end(), random_);
            for (const int warp : warps)
                for (int turns = 1 + random_() % 40; turns > 0 && run_warp(warp); --turns)
                    progress = true;
            if (!finish_block() && !progress) throw std::runtime_error("threads wait for each other for ever");
        }
        current_block = nullptr;
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

    static inline Block* current_block = nullptr;
    unsigned thread() const { return current_; }
    unsigned block() const { return block_; }

private:
    struct Fiber {
        ucontext_t context;
        std::vector<char> stack;
        bool done = false;
        Collective waits_for = Collective::kNone;
        uint64_t value = 0, result = 0;
        int argument = 0;
    };

    void enter() {
        body_();
        fibers_[current_].done = true;
    }

    static bool is_of_block(Collective c) { return c >= Collective::kSync; }

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
        auto waits_here = [](const Fiber& f) {
            return !f.done && f.waits_for != Collective::kNone && !is_of_block(f.waits_for);
        };
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
            for (int j = 0; j < 32; ++j) {
                if (collective == Collective::kMatch) f.result |= uint64_t{lanes[j].value == f.value} << j;
                if (collective == Collective::kAny) f.result |= lanes[j].value;
                if (collective == Collective::kBallot) f.result |= uint64_t{lanes[j].value != 0} << j;
                if (collective == Collective::kMax) f.result = std::max(f.result, lanes[j].value);
                if (collective == Collective::kAdd) f.result = static_cast<uint32_t>(f.result + lanes[j].value);
            }
        }
        for (int i = 0; i < 32; ++i)
            lanes[i].waits_for = Collective::kNone;
    }

    bool finish_block() {
        const auto first = std::find_if(fibers_.begin(), fibers_.end(), [](const Fiber& f) { return !f.done; });
        if (first == fibers_.end()) return false;
        const Collective collective = first->waits_for;
        uint64_t all = 1, any = 0;
        for (const Fiber& f : fibers_) {
            if (f.done) continue;
            if (!is_of_block(f.waits_for)) return false;
            if (f.waits_for != collective) throw std::runtime_error("a block's threads wait at different barriers");
            all &= f.value;
            any |= f.value;
        }
        for (Fiber& f : fibers_) {
            f.result = collective == Collective::kSyncAnd ? all : any;
            f.waits_for = Collective::kNone;
        }
        return true;
    }

    std::function<void()> body_;
    std::mt19937_64 random_;
    unsigned block_;
    int current_ = 0;
    ucontext_t scheduler_;
    std::vector<Fiber> fibers_;
};

inline Index thread_index() { return {Block::current_block->thread()}; }
inline Index block_index() { return {Block::current_block->block()}; }

template <class T>
T collective(Collective c, T value, int argument = 0) {
    uint64_t in = 0;
    std::memcpy(&in, &value, sizeof value);
    const uint64_t out = Block::current_block->wait(c, in, argument);
    std::memcpy(&value, &out, sizeof value);
    return value;
}

inline uint64_t together(Collective c, uint64_t value) { return Block::current_block->wait(c, value, 0); }

}  // namespace varattn::simt

template <class T>
T __shfl_sync(unsigned, T value, int lane) {
    return varattn::simt::collective(varattn::simt::Collective::kShuffle, value, lane);
}
template <class T>
T __shfl_up_sync(unsigned, T value, int distance) {
    return varattn::simt::collective(varattn::simt::Collective::kShuffleUp, value, distance);
}
inline uint32_t __match_any_sync(unsigned, int32_t value) {
    return varattn::simt::together(varattn::simt::Collective::kMatch, static_cast<uint32_t>(value));
}
inline bool __any_sync(unsigned, bool value) { return varattn::simt::together(varattn::simt::Collective::kAny, value); }
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
