#!/usr/bin/env bash
# Block training on several machines, started by hand on each of them at about the same time:
#
#   NODES=2 NODE_RANK=0 MASTER=10.0.0.1 bash scripts/launch/torchrun_nodes.sh -c CONFIG -s SCENE -m OUT [key=value ...]
#   NODES=2 NODE_RANK=1 MASTER=10.0.0.1 bash scripts/launch/torchrun_nodes.sh  ... the same ...
#
# NODES      number of machines
# NODE_RANK  number of this machine, from 0; machine 0 lets the others find each other
# MASTER     address of machine 0, which all machines reach
# PORT       its port for that (default: 29400). The ranks open others, so the machines must trust each other
# PROCS      processes on this machine (default: gpu, one for each GPU); with GPUs absent give a number
# RESTARTS   how often the ranks start again, from the last checkpoint, after one of them has died (default: 3)
# ADDRESS    address of this machine for the others, where its host name does not lead there
# IFACE      network interface for the ranks' traffic, where the one of the host name is not it, e.g. ib0
#
# OUT and SCENE are the same paths on every machine, OUT on a disk that all share. blocks.groups=NODES keeps every block
# on one machine, so that blocks never cross the network. SIGTERM or Ctrl-C on every machine saves and ends the run; the
# same commands with --resume continue. Where a machine other than 0 is lost, its command on another one brings the run
# back, from the last checkpoint.
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
[ -d "$repository/.venv/bin" ] && PATH="$repository/.venv/bin:$PATH"
: "${NODES:?number of machines}" "${NODE_RANK:?number of this machine, from 0}" "${MASTER:?address of machine 0}"

if [ -n "${IFACE:-}" ]; then export GLOO_SOCKET_IFNAME=$IFACE NCCL_SOCKET_IFNAME=$IFACE; fi
# torchrun waits so many seconds for the checkpoint of ranks that it was told to stop, then kills them.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-300}
# Otherwise torchrun keeps the address that the ranks first met at, and never tells it to a machine that comes later.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
is_host=$([ "$NODE_RANK" -eq 0 ] && echo true || echo false)

exec torchrun --nnodes="$NODES" --nproc_per_node="${PROCS:-gpu}" --max-restarts="${RESTARTS:-3}" \
    --rdzv-backend=c10d --rdzv-endpoint="$MASTER:${PORT:-29400}" --rdzv-id=momentum-gs --rdzv-conf="is_host=$is_host" \
    ${ADDRESS:+--local-addr="$ADDRESS"} -m momentum_gs train "$@"
