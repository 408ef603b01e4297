// Kernels on a CPU: what a GPU gives them (grid, shared memory, barriers) for tests.
//
// Threads of a block are fibres that run in turn, forwards or backwards, from barrier to barrier:
// where a barrier is missing, the two orders give different numbers. Structures are passed by
// reference, so that every argument of a kernel is one word.
#pragma once
#include <stdlib.h>
#include <ucontext.h>

struct TwinIndex {
  unsigned x;
};
static TwinIndex blockIdx, threadIdx, gridDim, blockDim;

#define OCP_GRID 1
#define OCP_LANES 1
#define OCP_KERNEL extern "C" __attribute__((visibility("default"))) void
#define OCP_WIDE_KERNEL OCP_KERNEL
#define OCP_GIVEN(Kind) const Kind&
#define __shared__ static

typedef long long TwinWord;
typedef void (*TwinKernel)(
    TwinWord, TwinWord, TwinWord, TwinWord, TwinWord, TwinWord, TwinWord, TwinWord);

struct TwinFibre {
  ucontext_t context;
  char* stack;
  bool done;
};
struct TwinBlock {
  ucontext_t scheduler;
  TwinFibre* fibres;
  TwinKernel kernel;
  const TwinWord* a;
  bool barriers;
};
static TwinBlock twin;

static void twin_thread() {
  const TwinWord* a = twin.a;
  twin.kernel(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]);
  twin.fibres[threadIdx.x].done = true;
}

static inline void __syncthreads() {
  const unsigned own = threadIdx.x;
  twin.barriers = true;
  swapcontext(&twin.fibres[own].context, &twin.scheduler);
  threadIdx.x = own;
}

// As __syncthreads, and whether any thread of the block says so.
static inline int __syncthreads_or(int own) {
  static int votes;
  votes |= own != 0;
  __syncthreads();
  const int all = votes;
  __syncthreads();
  votes = 0;
  __syncthreads();
  return all;
}

// Returns 0, or 1 where some threads of a block end while others wait for them.
static int twin_block(int threads, bool backwards) {
  const size_t room = 1 << 20;
  for (int i = 0; i < threads; ++i) {
    TwinFibre& f = twin.fibres[i];
    f.done = false;
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack = (char*)malloc(room);
    f.context.uc_stack.ss_size = room;
    f.context.uc_link = &twin.scheduler;
    makecontext(&f.context, twin_thread, 0);
  }
  int left = threads, wrong = 0;
  while (left > 0 && !wrong) {
    const int before = left;
    for (int i = 0; i < threads; ++i) {
      threadIdx.x = backwards ? threads - 1 - i : i;
      TwinFibre& f = twin.fibres[threadIdx.x];
      if (f.done) continue;
      swapcontext(&twin.scheduler, &f.context);
      left -= f.done;
    }
    wrong = left != 0 && left != before;
  }
  for (int i = 0; i < threads; ++i) free(twin.fibres[i].stack);
  return wrong;
}

extern "C" __attribute__((visibility("default"))) int twin_launch(
    TwinKernel kernel, int blocks, int threads, int backwards, const TwinWord* arguments) {
  int wrong = 0;
  twin.fibres = (TwinFibre*)calloc(threads, sizeof(TwinFibre));
  twin.kernel = kernel;
  twin.a = arguments;
  gridDim.x = blocks;
  blockDim.x = threads;
  for (int b = 0; b < blocks; ++b) {
    blockIdx.x = backwards ? blocks - 1 - b : b;
    wrong |= twin_block(threads, backwards);
  }
  free(twin.fibres);
  return wrong;
}
