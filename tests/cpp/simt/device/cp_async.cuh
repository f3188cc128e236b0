// csrc/device/cp_async.cuh for a CPU: groups arrive some time later, in any order.
#pragma once

#include <deque>

#include "device/barrier.cuh"

namespace varattn::device {

struct AsyncCopies {
    struct Copy {
        void* shared;
        const void* global;
        bool valid;
    };
    std::vector<Copy> next;
    std::deque<std::shared_ptr<bool>> groups;  // whether each has arrived
};
inline std::unordered_map<int, AsyncCopies> async_copies_of_fiber;

inline AsyncCopies& my_async_copies() { return async_copies_of_fiber[simt::Cluster::current_cluster->fiber()]; }

inline void cp_async_16(void* shared, const void* global, bool valid) {
    my_async_copies().next.push_back({shared, global, valid});
}
inline void cp_async_commit() {
    AsyncCopies& mine = my_async_copies();
    mine.groups.push_back(std::make_shared<bool>(false));
    simt::Cluster::current_cluster->later([group = mine.groups.back(), copies = std::move(mine.next)] {
        for (const auto& copy : copies)
            if (copy.valid)
                std::memcpy(copy.shared, copy.global, 16);
            else
                std::memset(copy.shared, 0, 16);
        *group = true;
    });
    mine.next.clear();
}
template <int kPending>
void cp_async_wait() {
    auto& groups = my_async_copies().groups;
    for (; groups.size() > kPending; groups.pop_front())
        if (!*groups.front()) simt::Cluster::current_cluster->wait_until([group = groups.front()] { return *group; });
}

}  // namespace varattn::device
