// A static partition of independent work over threads: results do not depend on their number.
#pragma once
#include <pthread.h>

#include "pack.h"

namespace ocp {

constexpr Int most_threads = 256;
constexpr unsigned long stack_bytes = 1ul << 25;  // a stage's matrices are local

template <class Body> struct Part {
  Body* body;
  Int thread, begin, end;
};

template <class Body> OCP_FN void* run_part(void* argument) {
  Part<Body>& part = *(Part<Body>*)argument;
  (*part.body)(part.thread, part.begin, part.end);
  return nullptr;
}

// How many threads `parallel` uses.
OCP_FN Int threads_for(Int threads, Int count) {
  Int most = threads < count ? threads : count;
  return most < 1 ? 1 : most > most_threads ? most_threads : most;
}

// body(thread, begin, end) on equal parts of 0..count. A thread that cannot start runs here. For a
// single problem starting threads would take longer than its stages.
template <class Body> OCP_FN void parallel(Int threads, Int count, Body body) {
  const Int used = single ? 1 : threads_for(threads, count);
  if (used == 1) return body(Int(0), Int(0), count);
  Part<Body> parts[most_threads];
  pthread_t handles[most_threads];
  bool started[most_threads];
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, stack_bytes);
  for (Int i = 0; i < used; ++i) {
    parts[i] = {&body, i, count * i / used, count * (i + 1) / used};
    started[i] =
        i > 0 && pthread_create(&handles[i], &attributes, run_part<Body>, &parts[i]) == 0;
  }
  pthread_attr_destroy(&attributes);
  for (Int i = 0; i < used; ++i)
    if (!started[i]) run_part<Body>(&parts[i]);
  for (Int i = 0; i < used; ++i)
    if (started[i]) pthread_join(handles[i], nullptr);
}

// The same for units of work memory: those of threads.
template <class Body> OCP_FN void parallel_units(Int threads, Int count, Body body) {
  parallel(threads, count, body);
}

}  // namespace ocp
