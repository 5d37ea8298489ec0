// Thread block clusters: blocks that run at the same time and can access each other's shared memory. From Hopper on.
// See barrier.cluster and mapa in the PTX ISA, and "Distributed shared memory" in the CUDA programming guide.
#pragma once

#include <cstdint>

namespace bert
{

// The rank of this block in its cluster, and the number of blocks of the cluster.
inline __device__ uint32_t clusterRank()
{
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
inline __device__ uint32_t clusterSize()
{
    uint32_t size;
    asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
    return size;
}
// The index of this block's cluster in the grid, and the number of clusters. A kernel launched without clusters has
// clusters of one block.
inline __device__ uint32_t clusterNumber()
{
    uint32_t number;
    asm volatile("mov.u32 %0, %%clusterid.x;" : "=r"(number));
    return number;
}
inline __device__ uint32_t clusterCount()
{
    uint32_t count;
    asm volatile("mov.u32 %0, %%nclusterid.x;" : "=r"(count));
    return count;
}

// All threads of all blocks of the cluster that have not ended call both, in turn, warps as a whole. The first waits for
// no stores: barriers initialised before it (fenceBarrierInit) are visible to all after the second, but what ordinary
// stores wrote need not be.
inline __device__ void clusterArrive()
{
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
inline __device__ void clusterWait()
{
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// The address of the same variable in the shared memory of another block of the cluster. A cluster barrier must
// separate the start of that block from the first write, and the block must not end before the last write.
inline __device__ uint32_t addressInPeerBlock(uint32_t address, uint32_t rank)
{
    uint32_t peer;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(peer) : "r"(address), "r"(rank));
    return peer;
}
// 16 bytes to there, without waiting; the barrier, in the same block as they go to, counts them when they are there.
inline __device__ void sendToCluster(uint32_t address, float const (&v)[4], uint32_t barrier)
{
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 "
                 "[%0], {%1, %2, %3, %4}, [%5];" ::"r"(address),
        "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3]), "r"(barrier)
        : "memory");
}
// The same for 8 bytes.
inline __device__ void sendToCluster(uint32_t address, float2 v, uint32_t barrier)
{
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(
            address),
        "f"(v.x), "f"(v.y), "r"(barrier)
        : "memory");
}

} // namespace bert
