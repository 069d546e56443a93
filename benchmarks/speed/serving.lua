-- For wrk: posts the files after `--` in turn, and ends with one line of JSON. Times in microseconds.

local bodies, at, threads = {}, 0, {}
counts = {}

function setup(thread)
    table.insert(threads, thread)
end

function init(files)
    wrk.method = "POST"
    wrk.headers["Content-Type"] = "application/octet-stream"
    for _, name in ipairs(files) do
        local file = assert(io.open(name, "rb"))
        table.insert(bodies, wrk.format(nil, nil, nil, file:read("*a")))
        file:close()
    end
end

function request()
    at = at % #bodies + 1
    return bodies[at]
end

function response(status)
    counts[status] = (counts[status] or 0) + 1
end

function done(summary, latency)
    local all, parts = {}, {}
    for _, thread in ipairs(threads) do
        for status, count in pairs(thread:get("counts")) do
            all[status] = (all[status] or 0) + count
        end
    end
    for status, count in pairs(all) do
        table.insert(parts, string.format('"%d": %d', status, count))
    end
    local errors = summary.errors
    io.write(string.format(
        '{"seconds": %.6f, "p50": %d, "p95": %d, "p99": %d, "max": %d, "broken": %d, "timeouts": %d, "statuses": {%s}}\n',
        summary.duration / 1e6, latency:percentile(50), latency:percentile(95), latency:percentile(99), latency.max,
        errors.connect + errors.read + errors.write, errors.timeout, table.concat(parts, ", ")))
end
