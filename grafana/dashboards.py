#!/usr/bin/env python3
"""Writes dashboards/*.json, which Grafana reads; this file is what people read and change.

    python3 grafana/dashboards.py           writes them
    python3 grafana/dashboards.py --check   says which of them differ, and fails

A metric of a whole database (`callsheet_jobs`, `callsheet_oldest_pending_seconds`) is told by every worker, so it is never
summed over workers: `max by (type)` first. What a worker counts itself is summed.
"""

import json
import pathlib
import sys

HERE = pathlib.Path(__file__).parent / "dashboards"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
ENDED = 'to=~"COMPLETED|ERROR|CANCELLED"'
FAILED = 'outcome!~"COMPLETED|CANCELLED"'
W = 'instance=~"$worker"'
F = 'instance=~"$worker", type=~"$flow"'

GREEN, YELLOW, RED, BLUE = "green", "yellow", "red", "blue"
# One colour for one meaning on every dashboard: by what a legend shows, the colour of each name in it.
STATUSES = {"PENDING": YELLOW, "INQUEUE": "light-blue", "PROGRESS": BLUE, "COMPLETED": GREEN, "ERROR": RED, "CANCELLED": "#808080"}
COLOURS = {
    "{{status}}": STATUSES,
    "{{to}}": STATUSES,
    "{{outcome}}": {"COMPLETED": GREEN, "FAILED": RED, "SPAWN_FAILED": "dark-red", "TIMED_OUT": "orange", "CANCELLED": "#808080", "LOST": "purple"},
    "{{verdict}}": {"reattached": GREEN, "finished_while_away": BLUE, "never_started": YELLOW, "lost": "purple"},
    "p50": {"p50": "light-green"}, "p95": {"p95": YELLOW}, "p99": {"p99": RED}, "limit": {"limit": RED},
}


def target(expr, legend="__auto", instant=False, form="time_series"):
    return {"expr": expr, "legendFormat": legend, "instant": instant, "range": not instant, "format": form}


def quantiles(histogram, selector, by=""):
    """p50, p95 and p99 of a histogram's observations."""
    return [
        target(f"histogram_quantile({q}, sum by (le{by}) (rate({histogram}_bucket{{{selector}}}[$__rate_interval])))", f"p{p}")
        for q, p in (("0.5", 50), ("0.95", 95), ("0.99", 99))
    ]


def thresholds(*steps):
    """The first colour holds from the bottom on, each further one from its value on."""
    first, rest = steps[0], steps[1:]
    return {
        "mode": "absolute",
        "steps": [{"color": first, "value": None}, *({"color": color, "value": value} for value, color in rest)],
    }


def panel(kind, title, description, targets, *, w, h=8, unit="short", steps=None, custom=None, options=None, links=None, **defaults):
    field = {"unit": unit, **defaults}
    if steps:
        field["thresholds"] = thresholds(*steps)
        field["color"] = {"mode": "thresholds"} if kind == "stat" else {"mode": "palette-classic"}
    if custom:
        field["custom"] = custom
    if links:
        field["links"] = [{"title": name, "url": url, "targetBlank": True} for name, url in links]
    targets = targets if isinstance(targets, list) else [targets]
    overrides = [
        {"matcher": {"id": "byName", "options": name}, "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": color}}]}
        for each in targets if kind == "timeseries"
        for name, color in COLOURS.get(each["legendFormat"], {}).items()
    ]
    return {
        "type": kind, "title": title, "description": description, "datasource": SOURCE,
        "gridPos": {"x": 0, "y": 0, "w": w, "h": h},
        "targets": [{"refId": chr(65 + n), "datasource": SOURCE, "editorMode": "code", **each} for n, each in enumerate(targets)],
        "fieldConfig": {"defaults": field, "overrides": overrides}, "options": options or {},
    }


def stat(title, description, expr, *, w=3, h=4, graph="area", legend="__auto", **more):
    options = {
        "colorMode": "background", "graphMode": graph, "justifyMode": "auto", "textMode": "auto", "orientation": "auto",
        "wideLayout": True, "showPercentChange": False, "percentChangeColorMode": "standard",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    }
    return panel("stat", title, description, target(expr, legend), w=w, h=h, options=options, **more)


def series(title, description, targets, *, w=8, h=8, stack=False, fill=10, steps=None, **more):
    custom = {
        "drawStyle": "line", "lineWidth": 1, "fillOpacity": 60 if stack else fill, "showPoints": "never", "spanNulls": False,
        "stacking": {"mode": "normal" if stack else "none", "group": "A"},
        "thresholdsStyle": {"mode": "dashed" if steps else "off"},
    }
    options = {
        "legend": {"showLegend": True, "displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return panel("timeseries", title, description, targets, w=w, h=h, custom=custom, options=options, steps=steps, **more)


def heatmap(title, description, histogram, selector, *, unit="s", w=12, h=9):
    expr = f"sum by (le) (increase({histogram}_bucket{{{selector}}}[$__rate_interval]))"
    options = {
        "calculate": False, "cellGap": 1, "cellValues": {"unit": "short"}, "showValue": "never",
        "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64, "exponent": 0.5, "scale": "exponential", "reverse": False, "fill": "dark-orange"},
        "exemplars": {"color": "rgba(255,0,255,0.7)"}, "filterValues": {"le": 1e-9}, "legend": {"show": True},
        "rowsFrame": {"layout": "auto"}, "tooltip": {"mode": "single", "yHistogram": True, "showColorScale": False},
        "yAxis": {"axisPlacement": "left", "unit": unit, "reverse": False},
    }
    return panel("heatmap", title, description, target(expr, "{{le}}", form="heatmap"), w=w, h=h, unit=unit, options=options)


def table(title, description, columns, *, key, w=24, h=8, units=None, links=None):
    """A row for each value of the label `key`; `columns` is the name of each column and its query."""
    targets = [target(f"{expr}", instant=True, form="table") for _, expr in columns]
    made = panel("table", title, description, targets, w=w, h=h, options={"showHeader": True, "frameIndex": 0, "cellHeight": "sm"})
    names = {f"Value #{chr(65 + n)}": name for n, (name, _) in enumerate(columns)}
    if len(columns) == 1:
        names["Value"] = columns[0][0]
    made["transformations"] = [
        {"id": "merge", "options": {}},
        {"id": "organize", "options": {"excludeByName": {"Time": True}, "renameByName": names, "indexByName": {}}},
    ]
    made["fieldConfig"]["defaults"]["custom"] = {"align": "auto", "cellOptions": {"type": "auto"}, "inspect": False}
    made["fieldConfig"]["overrides"] = [
        {"matcher": {"id": "byName", "options": name}, "properties": [{"id": "unit", "value": unit}]} for name, unit in (units or {}).items()
    ]
    if links:
        made["fieldConfig"]["overrides"].append({
            "matcher": {"id": "byName", "options": key},
            "properties": [{"id": "links", "value": [{"title": name, "url": url} for name, url in links]}],
        })
    return made


UP_DOWN = [{"type": "value", "options": {"0": {"text": "DOWN", "color": RED, "index": 0}, "1": {"text": "up", "color": GREEN, "index": 1}}}]


def variable(name, label, query, *, multi, regex="", description=""):
    everything = {"selected": True, "text": ["All"], "value": ["$__all"]}
    return {
        "type": "query", "name": name, "label": label, "description": description, "datasource": SOURCE,
        "query": {"query": query, "refId": f"variable-{name}"}, "regex": regex, "refresh": 2, "sort": 1, "hide": 0,
        "multi": multi, "includeAll": multi, **({"allValue": ".*"} if multi else {}),
        "options": [], **({"current": everything} if multi else {}),
    }


def textbox(name, label, value, description):
    current = {"selected": True, "text": value, "value": value}
    return {"type": "textbox", "name": name, "label": label, "description": description, "query": value, "current": current, "options": [current], "hide": 0}


def annotation(name, color, expr, title, by_value=False):
    return {
        "name": name, "datasource": SOURCE, "enable": True, "hide": False, "iconColor": color,
        "target": {"refId": name, "expr": expr, "datasource": SOURCE}, "titleFormat": title, "useValueForTime": "on" if by_value else "off",
    }


def dashboard(uid, title, description, rows, *, one_flow=False, has_flow=True):
    panels, y = [], 0
    for heading, members in rows:
        panels.append({"type": "row", "title": heading, "collapsed": False, "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}, "panels": []})
        y, x, height = y + 1, 0, 0
        for member in members:
            place = member["gridPos"]
            if x + place["w"] > 24:
                x, y, height = 0, y + height, 0
            place["x"], place["y"] = x, y
            x, height = x + place["w"], max(height, place["h"])
            panels.append(member)
        y += height
    for number, member in enumerate(panels, 1):
        member["id"] = number
    variables = [
        {
            "type": "datasource", "name": "datasource", "label": "Data source", "query": "prometheus", "regex": "", "hide": 0, "refresh": 1,
            "multi": False, "includeAll": False, "options": [], "description": "The Prometheus that scrapes Callsheet.",
        },
        variable(
            "worker", "Worker", "query_result(callsheet_worker_info)", multi=True,
            # Shown by its name, chosen by its address, which every series carries.
            regex='/instance="(?<value>[^"]+)".*worker_id="(?<text>[^"]+)"/', description="Which workers are looked at.",
        ),
    ]
    if has_flow:
        variables.append(variable("flow", "Flow", 'label_values(callsheet_flow_up{instance=~"$worker"}, type)', multi=not one_flow, description="Which job types are looked at."))
    variables += [
        textbox("service_url", "Service", "http://localhost:8440", "Where a browser finds the service's page; for links."),
        textbox("log_url", "Log", "http://localhost:8440/api/v1/events", "Where the service's log is shown; by default its own stream of status changes."),
    ]
    def outside(name, url, tip):
        return {
            "type": "link", "title": name, "url": url, "tooltip": tip, "icon": "external link", "targetBlank": True, "asDropdown": False,
            "includeVars": False, "keepTime": False, "tags": [],
        }
    links = [
        {
            "type": "dashboards", "title": "Callsheet", "tags": ["callsheet"], "tooltip": "The other dashboards, with the same time and worker", "icon": "external link",
            "asDropdown": False, "includeVars": True, "keepTime": True, "targetBlank": False,
        },
        outside("Service's page", "${service_url}/", "Every job, its runs and its output"),
        outside("Service's log", "${log_url}", "What the service says"),
    ]
    restarts = annotation(
        "Restarts", "orange",
        f"process_start_time_seconds{{{W}}} * on (instance, job) group_left (version) callsheet_build_info{{{W}}} * 1000",
        "{{instance}} started ({{version}})", by_value=True,
    )
    deploys = annotation(
        "Deploys", BLUE,
        f"count by (version) (callsheet_build_info{{{W}}}) unless count by (version) (callsheet_build_info{{{W}}} offset 10m)",
        "version {{version}} is new",
    )
    return {
        "uid": uid, "title": title, "description": description, "tags": ["callsheet"], "schemaVersion": 39, "version": 1, "editable": True,
        "graphTooltip": 1, "timezone": "browser", "refresh": "30s", "time": {"from": "now-6h", "to": "now"}, "timepicker": {},
        "annotations": {"list": [restarts, deploys]}, "templating": {"list": variables}, "links": links, "panels": panels,
    }


WAITING = f'max by (type) (callsheet_jobs{{{F}, status="PENDING"}})'
OLDEST = f"max by (type) (callsheet_oldest_pending_seconds{{{F}}})"
RUNNING = f"sum by (type) (callsheet_runs_in_progress{{{F}}})"
LIMIT = f"max by (type) (callsheet_flow_concurrency{{{F}}})"
SUCCESS = (
    f'sum by (type) (increase(callsheet_job_transitions_total{{{F}, to="COMPLETED"}}[1d])) / '
    f"(sum by (type) (increase(callsheet_job_transitions_total{{{F}, {ENDED}}}[1d])) > 0)"
)
SINCE_TICK = f"time() - callsheet_scheduler_last_tick_timestamp_seconds{{{F}}}"
JOBS_PAGE = [("Jobs on the service's page", "${service_url}/jobs?type=${__field.labels.type}")]
FLOW_PAGE = [("This flow in depth", "/d/callsheet-flow?var-flow=${__value.raw}&${datasource:queryparam}&${worker:queryparam}&${__url_time_range}")]

OVERVIEW = dashboard("callsheet-overview", "Callsheet / Overview", "Is anything stuck, and how much is being done.", [
    ("Is anything stuck?", [
        stat("Workers", "Workers that Prometheus can scrape. None means that the service is down, or that Prometheus can't reach it.",
             f"count(callsheet_build_info{{{W}}}) or vector(0)", steps=[RED, (1, GREEN)], graph="none"),
        stat("Database", "DOWN where the last use of the database failed. Commands run on meanwhile; nothing new starts, and results wait on disk.",
             f"min(callsheet_store_up{{{W}}})", mappings=UP_DOWN, steps=[RED, (1, GREEN)], graph="none"),
        stat("Flows down", "Flows whose actors have failed and are to be started again; readyz says why.",
             f"count(callsheet_flow_up{{{F}}} == 0) or vector(0)", steps=[GREEN, (1, RED)], graph="none"),
        stat("Oldest waiting job", "How long the job that could have run for the longest time has been waiting. It grows where a queue is stuck, and also where there is simply more work than slots.",
             f"max({OLDEST})", unit="s", steps=[GREEN, (3600, YELLOW), (86400, RED)]),
        stat("Since the last tick", "The longest time since a scheduler looked at its schedule: each does so every minute.",
             f"max({SINCE_TICK})", unit="s", steps=[GREEN, (120, YELLOW), (180, RED)]),
        stat("Nearest to its timeout", "The part of its time limit that the run nearest to it has used; at 100 % its shim ends it.",
             f"max(callsheet_run_timeout_used_ratio{{{F}}})", unit="percentunit", min=0, max=1, steps=[GREEN, (0.8, YELLOW), (0.95, RED)]),
        stat("Failed in the last hour", "Jobs that became ERROR: failed for good, with no attempts left or refused.",
             f'sum(increase(callsheet_job_transitions_total{{{F}, to="ERROR"}}[1h]))', decimals=0, steps=[GREEN, (1, YELLOW), (10, RED)]),
        stat("Disk of the runs", "Free part of the file system that holds run directories and logs. Without space no command can be launched.",
             f"min(callsheet_runs_disk_free_bytes{{{W}}} / callsheet_runs_disk_size_bytes{{{W}}})", unit="percentunit", min=0, max=1,
             steps=[RED, (0.05, YELLOW), (0.15, GREEN)]),
    ]),
    ("Every flow", [
        table("Flows", "How each flow's queue stands now. The name leads to the flow's own dashboard.", [
            ("up", f"min by (type) (callsheet_flow_up{{{F}}})"), ("paused", f"max by (type) (callsheet_flow_paused{{{F}}})"),
            ("waiting", WAITING), ("oldest waiting", OLDEST), ("running", RUNNING), ("at most", LIMIT),
            ("longest run", f"max by (type) (callsheet_longest_run_seconds{{{F}}})"), ("completed of ended, 24 h", SUCCESS),
        ], key="type", units={"oldest waiting": "s", "longest run": "s", "completed of ended, 24 h": "percentunit"}, links=FLOW_PAGE),
    ]),
    ("Queues", [
        series("Waiting", "Jobs that are PENDING, delayed ones included, of each flow.", target(WAITING, "{{type}}"), stack=True, links=JOBS_PAGE, min=0),
        series("Age of the oldest waiting job", "How long the oldest job that could run has waited. A line that rises as fast as time passes is a queue from which nothing is taken.",
               target(OLDEST, "{{type}}"), unit="s", min=0, steps=[GREEN, (86400, RED)]),
        series("Running now", "Runs that the workers watch, of each flow: launching, running or being settled.", target(RUNNING, "{{type}}"), stack=True, min=0),
    ]),
    ("Throughput", [
        series("Jobs ended, by flow", "Jobs a minute that became COMPLETED, ERROR or CANCELLED.",
               target(f"60 * sum by (type) (rate(callsheet_job_transitions_total{{{F}, {ENDED}}}[$__rate_interval]))", "{{type}}"), unit="cpm", stack=True, min=0),
        series("Jobs ended, by status", "The same by how they ended.",
               target(f"60 * sum by (to) (rate(callsheet_job_transitions_total{{{F}, {ENDED}}}[$__rate_interval]))", "{{to}}"), unit="cpm", stack=True, min=0),
        series("Failures by cause", "Attempts that failed in the interval: by exit code or signal (FAILED), out of time (TIMED_OUT), not startable (SPAWN_FAILED), or lost with their machine (LOST). Retried ones count too.",
               target(f"sum by (outcome) (increase(callsheet_run_duration_seconds_count{{{F}, {FAILED}}}[$__rate_interval]))", "{{outcome}}"), stack=True, min=0,
               links=[("Failed jobs on the service's page", "${service_url}/jobs?status=ERROR")]),
    ]),
    ("Times", [
        series("Run duration", "How long commands ran, over all outcomes.", quantiles("callsheet_run_duration_seconds", F), unit="s", w=12, min=0),
        series("Queue wait", "From the moment a job could run to the start of its command.", quantiles("callsheet_queue_wait_seconds", F), unit="s", w=12, min=0),
    ]),
])

FLOW = dashboard("callsheet-flow", "Callsheet / Flow", "One job type in depth.", [
    ("$flow now", [
        stat("Waiting", "Jobs of this flow that are PENDING, delayed ones included.", WAITING, unit="short", steps=[BLUE]),
        stat("Oldest waiting", "How long the oldest job that could run has waited.", OLDEST, unit="s", steps=[GREEN, (3600, YELLOW), (86400, RED)]),
        stat("Running", "Runs of this flow that the workers watch.", RUNNING, steps=[BLUE]),
        stat("Slots in use", "Running against the flow's concurrency, over all workers.", f"{RUNNING} / {LIMIT}", unit="percentunit", min=0, max=1, steps=[BLUE]),
        stat("Longest run", "How long the command that runs for the longest time has been running.", f"max(callsheet_longest_run_seconds{{{F}}})", unit="s", steps=[BLUE]),
        stat("Nearest to its timeout", "The part of its time limit that the run nearest to it has used.", f"max(callsheet_run_timeout_used_ratio{{{F}}})",
             unit="percentunit", min=0, max=1, steps=[GREEN, (0.8, YELLOW), (0.95, RED)]),
        stat("Completed of ended, 24 h", "Jobs that became COMPLETED, of all that ended in the last 24 hours.", SUCCESS, unit="percentunit", min=0, max=1,
             steps=[RED, (0.8, YELLOW), (0.95, GREEN)]),
        stat("Paused", "Whether somebody has paused the flow: then nothing of it is claimed.", f"max(callsheet_flow_paused{{{F}}})", graph="none",
             mappings=[{"type": "value", "options": {"0": {"text": "no", "color": GREEN, "index": 0}, "1": {"text": "PAUSED", "color": YELLOW, "index": 1}}}], steps=[GREEN, (1, YELLOW)]),
    ]),
    ("Durations", [
        heatmap("How long commands ran", "Each column is an interval, each cell how many runs that ended in it took so long.", "callsheet_run_duration_seconds", F),
        series("Run duration", "How long commands ran, over all outcomes.", quantiles("callsheet_run_duration_seconds", F), unit="s", w=12, h=9, min=0),
        series("Mean duration by outcome", "How long the runs of each outcome took on average; 0 where the command could not be started.",
               target(f"sum by (outcome) (rate(callsheet_run_duration_seconds_sum{{{F}}}[$__rate_interval])) / (sum by (outcome) (rate(callsheet_run_duration_seconds_count{{{F}}}[$__rate_interval])) > 0)", "{{outcome}}"), unit="s", min=0),
        series("Queue wait", "From the moment a job could run to the start of its command.", quantiles("callsheet_queue_wait_seconds", F), unit="s", min=0),
        series("Dispatch latency", "From noticing that there may be work to the exec of the command: the service's own part of the wait.",
               quantiles("callsheet_dispatch_latency_seconds", F), unit="s", min=0),
    ]),
    ("Queue and outcomes", [
        series("Open jobs by status", "Jobs of this flow that have not ended.", target(f"max by (status) (callsheet_jobs{{{F}}})", "{{status}}"), stack=True, min=0),
        series("Status changes", "Status changes a minute, by the status changed to; one to PENDING is a retry.",
               target(f"60 * sum by (to) (rate(callsheet_job_transitions_total{{{F}}}[$__rate_interval]))", "{{to}}"), unit="cpm", min=0),
        series("Attempts by outcome", "Attempts that ended in the interval, by outcome.",
               target(f"sum by (outcome) (increase(callsheet_run_duration_seconds_count{{{F}}}[$__rate_interval]))", "{{outcome}}"), stack=True, min=0),
        series("Running against the limit", "Runs in progress against the flow's concurrency.", [target(RUNNING, "running"), target(LIMIT, "limit")], min=0),
        series("Age of the oldest waiting job", "How long the oldest job that could run has waited.", target(OLDEST, "{{type}}"), unit="s", min=0),
        series("Time limit used", "The part of its time limit that the run nearest to it has used; at 100 % its shim ends it.",
               target(f"max(callsheet_run_timeout_used_ratio{{{F}}})", "used"), unit="percentunit", min=0, max=1, steps=[GREEN, (0.9, RED)]),
    ]),
    ("Resources of ended runs", [
        series("CPU", "CPU time used by runs that ended in the interval, in seconds a second, so as a number of cores. A run counts when it ends.",
               target(f"sum by (mode) (rate(callsheet_run_cpu_seconds_total{{{F}}}[$__rate_interval]))", "{{mode}}"), stack=True, min=0),
        series("CPU of one run", "CPU time of an average run.",
               target(f"sum by (mode) (rate(callsheet_run_cpu_seconds_total{{{F}}}[$__rate_interval])) / ignoring (mode) group_left () (sum (rate(callsheet_run_max_rss_bytes_count{{{F}}}[$__rate_interval])) > 0)", "{{mode}}"), unit="s", stack=True, min=0),
        series("Peak memory of one run", "Largest resident set of any one process of a run.", quantiles("callsheet_run_max_rss_bytes", F), unit="bytes", min=0),
        series("Storage", "Bytes that ended runs had read from and written to storage, each second. A run counts when it ends.",
               target(f"sum by (direction) (rate(callsheet_run_io_bytes_total{{{F}}}[$__rate_interval]))", "{{direction}}"), unit="Bps", w=12, min=0),
        series("Ended by the clock", "Runs that were ended in the interval because something ran out: start_to_close, schedule_to_close, watchdog, silence or heartbeat.",
               target(f"sum by (cause) (increase(callsheet_run_timeouts_total{{{F}}}[$__rate_interval]))", "{{cause}}"), w=12, min=0),
        heatmap("Peak memory", "Each cell is how many runs that ended in the interval had so large a largest process.", "callsheet_run_max_rss_bytes", F, unit="bytes", w=24),
    ]),
    ("Watching", [
        series("Heartbeats", "Confirmations of runs in the store, each second.", target(f"sum by (instance) (rate(callsheet_heartbeats_total{{{F}}}[$__rate_interval]))", "{{instance}}"), unit="ops", min=0),
        series("Heartbeats lost", "Runs that went unconfirmed for longer than heartbeat_timeout, in the interval.",
               target(f"sum by (instance) (increase(callsheet_heartbeat_timeouts_total{{{F}}}[$__rate_interval]))", "{{instance}}"), min=0),
        series("Recovered runs", "Open runs without an owner that were looked into, by what was found.",
               target(f"sum by (verdict) (increase(callsheet_recovered_runs_total{{{F}}}[$__rate_interval]))", "{{verdict}}"), min=0),
        series("Since the last tick", "Time since the flow's scheduler looked at its schedule.", target(SINCE_TICK, "{{instance}}"), unit="s", min=0, steps=[GREEN, (180, RED)]),
        series("Ticks", "Times in the interval that the schedule was due.", target(f"sum by (instance) (increase(callsheet_scheduler_ticks_total{{{F}}}[$__rate_interval]))", "{{instance}}"), min=0),
        series("Launches that failed", "Commands that could not be launched for reasons of the service or its machine, in the interval; they are tried again.",
               target(f"sum by (instance) (increase(callsheet_launch_failures_total{{{F}}}[$__rate_interval]))", "{{instance}}"), min=0),
    ]),
], one_flow=True)

SERVICE = dashboard("callsheet-service", "Callsheet / Service", "How the service itself is doing.", [
    ("Workers", [
        table("Workers that are scraped", "Each worker's address, host and name.", [("running", f"callsheet_worker_info{{{W}}} * on (instance, job) group_left (version) callsheet_build_info{{{W}}}")], key="worker_id", w=10, h=7),
        series("Last sign of life", "How long ago each worker of the database that has not stopped last wrote one, whether or not it is scraped: every 10 s where all is well.",
               target(f"max by (worker_id) (callsheet_worker_silence_seconds{{{W}}})", "{{worker_id}}"), unit="s", w=7, h=7, min=0, steps=[GREEN, (60, RED)]),
        series("Uptime", "How long each worker's service has been running. Commands live longer: they don't notice a restart.",
               target(f"time() - (process_start_time_seconds{{{W}}} * on (instance, job) group_left () callsheet_build_info{{{W}}})", "{{instance}}"), unit="s", w=7, h=7, min=0),
        series("Configuration", "1 where the configuration was taken when it was read last; 0 where a reload was refused, and the one before stays.",
               target(f"callsheet_config_last_reload_successful{{{W}}}", "{{instance}}"), w=24, h=5, min=0, max=1),
    ]),
    ("Actors", [
        series("Actors restarted", "Actors that failed and were started again in the interval, by role. Any at all is a fault worth reporting.",
               target(f"sum by (actor) (increase(callsheet_actor_restarts_total{{{W}}}[$__rate_interval]))", "{{actor}}"), min=0),
        series("Mailboxes", "Messages that wait for the actors of a role. One that grows is an actor that does not keep up.",
               target(f"sum by (actor) (callsheet_mailbox_depth{{{W}}})", "{{actor}}"), min=0),
        series("Flows up", "1 while a flow's actors run, 0 while it waits to be started again.", target(f"min by (type) (callsheet_flow_up{{{W}}})", "{{type}}"), min=0, max=1),
    ]),
    ("Database", [
        heatmap("How long commits took", "Each cell is how many transactions of status writes took so long.", "callsheet_store_write_seconds", W),
        series("Commit", "How long transactions of status writes took.", quantiles("callsheet_store_write_seconds", W), unit="s", w=12, h=9, min=0),
        series("Writes in one commit", "How many status writes shared a transaction, on average: it rises under load, which is what keeps up the pace.",
               target(f"sum by (instance) (rate(callsheet_store_batch_size_sum{{{W}}}[$__rate_interval])) / (sum by (instance) (rate(callsheet_store_batch_size_count{{{W}}}[$__rate_interval])) > 0)", "{{instance}}"), w=6, min=0),
        series("Commits", "Committed transactions of status writes, each second.", target(f"sum by (instance) (rate(callsheet_store_write_seconds_count{{{W}}}[$__rate_interval]))", "{{instance}}"), unit="ops", w=6, min=0),
        series("Errors", "Transactions of status writes that failed in the interval, by kind; they are tried again.",
               target(f"sum by (kind) (increase(callsheet_store_errors_total{{{W}}}[$__rate_interval]))", "{{kind}}"), w=6, min=0),
        series("Database used", "1 where the last use of the database succeeded.", target(f"callsheet_store_up{{{W}}}", "{{instance}}"), w=6, min=0, max=1),
        series("Age of the backlog's figures", "How long ago the gauges of the queues were read from the database: at most every half second, at least every 15 s, less often where counting is dear.",
               target(f"time() - callsheet_backlog_read_timestamp_seconds{{{W}}}", "{{instance}}"), unit="s", w=12, min=0),
        series("Traces", "Spans that were sent to the OpenTelemetry collector, and those that it did not take, each second. None where no endpoint is configured.",
               target(f"sum by (result) (rate(callsheet_trace_spans_total{{{W}}}[$__rate_interval]))", "{{result}}"), unit="ops", w=12, min=0),
        series("Jobs that nobody here serves", "Open jobs of types that no flow of the worker has: a misspelt type, or another worker's work.", target(f"callsheet_unserved_jobs{{{W}}}", "{{instance}}"), w=12, min=0),
    ]),
    ("Runs", [
        series("Recovery verdicts", "Open runs without an owner that were looked into, by what was found: after a restart mostly `reattached`.",
               target(f"sum by (verdict) (increase(callsheet_recovered_runs_total{{{W}}}[$__rate_interval]))", "{{verdict}}"), min=0),
        series("Heartbeats", "Confirmations of runs in the store, each second.", target(f"sum by (instance) (rate(callsheet_heartbeats_total{{{W}}}[$__rate_interval]))", "{{instance}}"), unit="ops", min=0),
        series("Heartbeats lost", "Runs that went unconfirmed for longer than heartbeat_timeout, in the interval.", target(f"sum by (type) (increase(callsheet_heartbeat_timeouts_total{{{W}}}[$__rate_interval]))", "{{type}}"), min=0),
        series("Scheduler ticks", "Times in the interval that a flow's schedule was due.", target(f"sum by (type) (increase(callsheet_scheduler_ticks_total{{{W}}}[$__rate_interval]))", "{{type}}"), w=12, min=0),
        series("Since the last tick", "Time since each flow's scheduler looked at its schedule: every minute.",
               target(f"time() - callsheet_scheduler_last_tick_timestamp_seconds{{{W}}}", "{{type}} on {{instance}}"), unit="s", w=12, min=0, steps=[GREEN, (180, RED)]),
    ]),
    ("Webhooks", [
        series("Undelivered events", "Status changes that a webhook has not taken yet, of all workers. Nothing here where none is configured.",
               target(f"max by (webhook) (callsheet_webhook_undelivered_events{{{W}}})", "{{webhook}}"), min=0),
        series("Age of the oldest undelivered event", "How long ago the oldest status change happened that a webhook has not taken yet. A receiver that is away shows as a line that rises as fast as time passes; after a day of tries an event is given up.",
               target(f"max by (webhook) (callsheet_webhook_oldest_undelivered_seconds{{{W}}})", "{{webhook}}"), unit="s", min=0, steps=[GREEN, (900, RED)]),
        series("Requests to webhooks", "Requests each second, by what came of them: delivered, retried (tried again later) or failed (given up after a day).",
               target(f"sum by (webhook, result) (rate(callsheet_webhook_deliveries_total{{{W}}}[$__rate_interval]))", "{{webhook}} {{result}}"), unit="ops", min=0),
    ]),
    ("Process and disk", [
        series("CPU", "Cores that the service itself uses; commands and their shims are not in it.", target(f"rate(process_cpu_seconds_total{{{W}}}[$__rate_interval]) * on (instance, job) group_left () callsheet_build_info{{{W}}}", "{{instance}}"), w=6, min=0),
        series("Memory", "Resident memory of the service itself.", target(f"process_resident_memory_bytes{{{W}}} * on (instance, job) group_left () callsheet_build_info{{{W}}}", "{{instance}}"), unit="bytes", w=6, min=0),
        series("Open files", "Open file descriptors against their limit: each running command takes one or two.",
               target(f"process_open_fds{{{W}}} / process_max_fds{{{W}}} * on (instance, job) group_left () callsheet_build_info{{{W}}}", "{{instance}}"), unit="percentunit", w=6, min=0, max=1, steps=[GREEN, (0.8, RED)]),
        series("Free space for runs", "What is left on the file system of run directories and logs.", target(f"callsheet_runs_disk_free_bytes{{{W}}}", "{{instance}}"), unit="bytes", w=6, min=0),
    ]),
], has_flow=False)

DASHBOARDS = {"overview": OVERVIEW, "flow": FLOW, "service": SERVICE}


def main():
    stale = []
    for name, made in DASHBOARDS.items():
        path, text = HERE / f"{name}.json", json.dumps(made, indent=1, ensure_ascii=False) + "\n"
        if sys.argv[1:] == ["--check"]:
            if not path.exists() or path.read_text() != text:
                stale.append(path.name)
        else:
            path.write_text(text)
    if stale:
        sys.exit(f"not what dashboards.py makes: {', '.join(stale)}; run python3 grafana/dashboards.py")


if __name__ == "__main__":
    main()
