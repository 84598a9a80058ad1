#!/usr/bin/env bash
# A real one-node Slurm in a private directory, without cgroups, systemd or accounting: for tests.
#   slurm.sh start DIR    needs root, Debian's slurm-wlm and munge, and no other Slurm configured here
#   slurm.sh stop DIR
# The node is said to have two cores and 200 GB, so that the profiles' requests fit; nothing is enforced.
# Everything lies in DIR but the link /etc/slurm/slurm.conf: Snakemake's Slurm executor drops SLURM_* variables in
# jobs, so SLURM_CONF does not reach them. Exit code 69: cannot be started here, the reason is on stderr.
set -euo pipefail

LINK=/etc/slurm/slurm.conf

unavailable() {
  echo "slurm.sh: $1" >&2
  exit 69
}

check() {
  [[ $(id -u) == 0 ]] || unavailable "needs root to start slurmd"
  local program
  for program in munged slurmctld slurmd sbatch; do
    PATH=$PATH:/usr/sbin command -v "$program" >/dev/null || unavailable "no $program: apt-get install slurm-wlm munge"
  done
  if [[ -e $LINK ]] && ! is_left_over; then
    unavailable "$LINK exists: another Slurm is configured here"
  fi
}

# True of the configuration of a Slurm that this script has started and nobody has stopped, but that is gone.
is_left_over() {
  local pid
  grep --quiet --line-regexp ClusterName=ipdiff "$LINK" || return 1
  pid=$(cat "$(dirname "$(readlink -f "$LINK")")/slurmctld.pid" 2>/dev/null || true)
  [[ -z $pid ]] || ! kill -0 "$pid" 2>/dev/null
}

free_ports() {
  python3 -c '
import socket
free = [socket.socket() for _ in range(2)]
for one in free:
    one.bind(("127.0.0.1", 0))
print(*(one.getsockname()[1] for one in free))'
}

write_configuration() {
  local dir=$1 node=$2 controller daemon
  read -r controller daemon < <(free_ports)
  cat >"$dir/slurm.conf" <<END
ClusterName=ipdiff
SlurmctldHost=$node(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket
CredType=cred/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
SlurmctldPort=$controller
SlurmdPort=$daemon
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$dir/jobs.log
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=5,bf_interval=5
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=120
MinJobAge=600
DefMemPerCPU=500
NodeName=$node NodeAddr=127.0.0.1 CPUs=2 Boards=1 SocketsPerBoard=1 CoresPerSocket=2 ThreadsPerCore=1 RealMemory=200000 State=UNKNOWN
PartitionName=main Nodes=$node Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO PriorityTier=10 PreemptMode=OFF
PartitionName=scavenge Nodes=$node MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE
END
}

start() {
  local dir=$1 node
  node=$(hostname -s)
  check
  export PATH=$PATH:/usr/sbin
  mkdir -p "$dir/state" "$dir/spool" /etc/slurm
  chmod 755 "$dir"
  (umask 077 && head -c 128 /dev/urandom >"$dir/munge.key")
  write_configuration "$dir" "$node"
  ln -sfn "$dir/slurm.conf" "$LINK"
  trap 'stop "$dir"' ERR
  {
    munged --force --socket="$dir/munge.socket" --key-file="$dir/munge.key" --pid-file="$dir/munged.pid" \
      --log-file="$dir/munged.log" --seed-file="$dir/munged.seed"
    slurmctld -f "$dir/slurm.conf"
    slurmd -f "$dir/slurm.conf" -N "$node"
  } </dev/null >>"$dir/start.log" 2>&1
  for _ in $(seq 1500); do
    if [[ $(sinfo --noheader --partition=main --format=%T 2>/dev/null) == idle ]]; then
      return 0
    fi
    sleep 0.2
  done
  tail -n 5 "$dir"/*.log >&2
  stop "$dir"
  unavailable "the node did not become idle within five minutes"
}

stop() {
  local dir=$1 name pid
  trap - ERR
  if [[ $(readlink "$LINK" || true) == "$dir/slurm.conf" && -s $dir/slurmctld.pid ]]; then
    scancel --quiet --user=root 2>/dev/null || true
    sleep 1
  fi
  for name in slurmd slurmctld munged; do
    pid=$(cat "$dir/$name.pid" 2>/dev/null || true)
    [[ -n $pid ]] || continue
    kill "$pid" 2>/dev/null || true
    for _ in $(seq 100); do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.1
    done
    kill -9 "$pid" 2>/dev/null || true
  done
  if [[ $(readlink "$LINK" || true) == "$dir/slurm.conf" ]]; then
    rm -f "$LINK"
  fi
}

case ${1-} in
start | stop) "$1" "$(realpath -m "${2:?directory}")" ;;
*)
  echo "usage: slurm.sh start|stop DIR" >&2
  exit 2
  ;;
esac
