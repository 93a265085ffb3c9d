/** The REST API of vmlab's server extension, from any page of the same Jupyter server. */
import { type Api, ApiError } from './types';

function cookie(name: string): string | null {
  const found = document.cookie.split('; ').find(part => part.startsWith(`${name}=`));
  return found ? decodeURIComponent(found.slice(name.length + 1)) : null;
}

interface ErrorBody {
  error?: { type?: string; message?: string; hint?: string | null };
  /** Jupyter's own errors */
  message?: string;
}

async function refused(answer: Response): Promise<ApiError> {
  let body: ErrorBody = {};
  try {
    body = (await answer.json()) as ErrorBody;
  } catch {
    // a proxy's page, or nothing
  }
  if ((answer.status === 401 || answer.status === 403) && !body.error) {
    return new ApiError(
      'You are not signed in to this Jupyter server, or may not do this.',
      answer.status,
      'Reload the page to sign in again.'
    );
  }
  const message =
    body.error?.message ?? body.message ?? `The server answered ${answer.status} ${answer.statusText}.`;
  return new ApiError(message, answer.status, body.error?.hint ?? null, body.error?.type);
}

/** Actions through the Jupyter server whose base URL this is. */
export function serverApi(baseUrl: string): Api {
  const url = (path: string): string => new URL(`${baseUrl}vmlab/api/${path}`, location.href).href;

  async function call(method: string, path: string, body?: unknown): Promise<unknown> {
    const headers: Record<string, string> = { Accept: 'application/json' };
    const xsrf = cookie('_xsrf');
    if (xsrf !== null) {
      headers['X-XSRFToken'] = xsrf;
    }
    if (body !== undefined) {
      headers['Content-Type'] = 'application/json';
    }
    let answer: Response;
    try {
      answer = await fetch(url(path), {
        method,
        headers,
        body: body === undefined ? undefined : JSON.stringify(body),
        credentials: 'same-origin',
        cache: 'no-store'
      });
    } catch {
      throw new ApiError(
        'The Jupyter server does not answer.',
        0,
        'Check that it runs and that you are online.'
      );
    }
    if (!answer.ok) {
      throw await refused(answer);
    }
    return answer.status === 204 ? null : ((await answer.json()) as unknown);
  }

  return {
    get: path => call('GET', path),
    post: (path, body = {}) => call('POST', path, body),
    url
  };
}
