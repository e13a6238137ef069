#!/usr/bin/env bash
# A SLURM cluster of this one machine, with accounting, for tests: everything in one folder, nothing outside it.
#
#     sudo launch/slurm_cluster_for_tests.sh start FOLDER && export SLURM_CONF=FOLDER/slurm.conf
#     sudo launch/slurm_cluster_for_tests.sh stop FOLDER
#
# Needs root and: apt-get install --no-install-recommends slurm-wlm slurmdbd munge mariadb-server
# FOLDER must be short: it holds sockets, whose paths end at 107 characters.
set -euo pipefail
action=${1:?start or stop} folder=$(realpath -m "${2:?FOLDER}")
export SLURM_CONF=$folder/slurm.conf MYSQL_UNIX_PORT=$folder/mysql.sock

stop() {  # in the reverse order of starting; each daemon's own process, by the id that it wrote
    for daemon in slurmd slurmctld slurmdbd mariadbd munged; do
        [ -f "$folder/$daemon.pid" ] || continue
        pid=$(cat "$folder/$daemon.pid")
        kill "$pid" 2>/dev/null || true
        for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
        kill -9 "$pid" 2>/dev/null || true
        rm -f "$folder/$daemon.pid"
    done
}

until_true() {  # WHAT COMMAND…
    local what=$1; shift
    local end=$((SECONDS + 1200))
    while [ $SECONDS -lt $end ]; do
        timeout 60 "$@" >/dev/null 2>&1 && return
        # one that ended at once, because another cluster has its port, will not come up
        [ -f "$folder/$what.pid" ] && ! kill -0 "$(cat "$folder/$what.pid")" 2>/dev/null && break
        sleep 0.2
    done
    echo "$what did not come up; logs are in $folder" >&2
    stop
    exit 1
}

if [ "$action" = stop ]; then stop; exit; fi
[ "$action" = start ] || { echo "start or stop, not $action" >&2; exit 2; }

mkdir -p "$folder"/{state,spool,mysql}
chmod 700 "$folder"
host=$(hostname -s)

head -c 128 /dev/urandom > "$folder/munge.key"
chmod 400 "$folder/munge.key"
munged --force --key-file="$folder/munge.key" --socket="$folder/munge.sock" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munged.log" --seed-file="$folder/munge.seed"

mariadb-install-db --no-defaults --user=root --datadir="$folder/mysql" --auth-root-authentication-method=normal \
    --skip-test-db >"$folder/mariadb-install.log" 2>&1
mariadbd --no-defaults --user=root --datadir="$folder/mysql" --socket="$MYSQL_UNIX_PORT" --skip-networking \
    --pid-file="$folder/mariadbd.pid" >"$folder/mariadbd.log" 2>&1 &
until_true MariaDB mariadb-admin --no-defaults --socket="$MYSQL_UNIX_PORT" ping

cat > "$folder/slurmdbd.conf" <<CONF
AuthType=auth/munge
AuthInfo=socket=$folder/munge.sock
DbdHost=localhost
DbdPort=16819
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
LogFile=$folder/slurmdbd.log
PidFile=$folder/slurmdbd.pid
CONF
chmod 600 "$folder/slurmdbd.conf"

cat > "$SLURM_CONF" <<CONF
ClusterName=tests
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
AuthInfo=socket=$folder/munge.sock
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort=16819
AccountingStoragePass=$folder/munge.sock
JobAcctGatherType=jobacct_gather/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=2
SchedulerParameters=sched_interval=2
SlurmdParameters=config_overrides
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
NodeName=$host NodeAddr=127.0.0.1 CPUs=4
PartitionName=main Nodes=$host Default=YES State=UP MaxTime=INFINITE
CONF

# slurmdbd reads slurmdbd.conf beside SLURM_CONF
slurmdbd
until_true slurmdbd sacctmgr --immediate --noheader list cluster
sacctmgr --immediate --quiet add cluster tests >/dev/null
slurmctld
until_true slurmctld scontrol ping
slurmd
until_true slurmd sh -c "sinfo --noheader --format=%T | grep -q idle"
