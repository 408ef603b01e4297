#!/bin/bash
# Install the peers into virtual environments of their own, and build the C++ server.
#
#     benchmarks/peers/install.sh PEERS_DIR WORK_DIR
#
# PEERS_DIR holds problems.py, gen_c.py and cpp_crocoddyl.cpp. Needs g++ and Python 3.
set -eu
peers=$(cd "$1" && pwd)
mkdir -p "$2/gen"
work=$(cd "$2" && pwd)
here=$(cd "$(dirname "$0")" && pwd)

environment() { # NAME PACKAGES...
  local name=$1
  shift
  [ -d "$work/$name" ] && return
  python3 -m venv "$work/$name"
  "$work/$name/bin/pip" install -q "$@"
}
# crocoddyl 3.2.1 returns nan with pin 4.1.0; its wheels crash with the headers of Eigen 3.4.0.
environment cr crocoddyl==3.2.1 pin==4.0.0 libpinocchio==4.0.0 mim-solvers==0.3.0 \
  cmeel-eigen==3.4.1
environment cas casadi==3.8.2 numpy scipy

cd "$work/gen"
PYTHONPATH="$peers" "$work/cas/bin/python" "$peers/gen_c.py" "$work/gen" > operations.txt
prefix=$(ls -d "$work"/cr/lib/python3*/site-packages/cmeel.prefix)
gcc -O3 -march=native -ffast-math -c gen.c -o gen.o
# No -march=native here: Eigen's alignment would differ from that of the wheels.
g++ -std=c++17 -O3 -DNEED_CLONE -DPINOCCHIO_ENABLE_COMPATIBILITY_WITH_VERSION_2 -w -I. -I"$peers" \
  -I"$prefix/include" -I"$prefix/include/eigen3" "$here/crocoddyl_server.cpp" gen.o \
  -L"$prefix/lib" -lcrocoddyl -lmim_solvers -Wl,--disable-new-dtags,-rpath,"$prefix/lib" -o server
echo "built $work/gen/server"
